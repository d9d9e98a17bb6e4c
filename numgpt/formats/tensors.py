"""Arrays in files: their shape and dtype are known, their values are read when they are wanted.

Every format that numgpt reads comes down to a mapping from names to stored tensors. Reading one
takes no more memory than its own values, and gives that memory back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numgpt.messages import shown

# By the names that safetensors gives them.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16: the raw bits
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
LARGEST_HEADER = 100_000_000  # bytes of names and shapes that a file may have before its values


@dataclass(eq=False, repr=False)
class StoredTensor:
    """An array in a file, in C order or with strides.

    A reader makes one only after checking that all of it lies inside the file.
    """

    path: Path
    name: str
    dtype: str  # a key of DTYPES, or the name of a quantised type
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    strides: tuple[int, ...] | None = None  # in elements; None: C order

    def __str__(self) -> str:
        """What errors call it."""
        return f"{self.path}: tensor {shown(self.name)}"

    @property
    def nbytes(self) -> int:
        """Its size, as numbers of its dtype one after another."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def finite(self) -> np.ndarray:
        """In float32.  Raises ValueError where a number is not finite."""
        array = np.empty(self.shape, np.float32)
        self.read_into(array)
        if not np.isfinite(array).all():
            raise ValueError(f"{self} holds NaN or infinity; download it again")
        return array

    @property
    def raw(self) -> np.ndarray:
        """The values, memory-mapped, read-only; bfloat16 as uint16."""
        dtype = DTYPES[self.dtype]
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        steps = c_order(self.shape) if self.strides is None else self.strides
        extent = 1 + sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))
        flat = np.memmap(
            self.path, np.uint8, mode="r", offset=self.offset, shape=extent * dtype.itemsize
        ).view(dtype)
        bytes_apart = tuple(step * dtype.itemsize for step in steps)
        return np.lib.stride_tricks.as_strided(flat, self.shape, bytes_apart, writeable=False)

    @property
    def is_float(self) -> bool:
        """Whether weights can be stored so: also in quantised types."""
        return self.dtype in ("F64", "F32", "F16", "BF16") or self.dtype not in DTYPES

    def read_into(self, target: np.ndarray) -> None:
        """Convert the values to the target's dtype, in place.

        The target may have another shape of the same size: it is filled in C order.
        """
        raw = self.raw.reshape(target.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            bits = raw.astype(np.uint32)
            bits <<= 16
            target[...] = bits.view(np.float32)
        else:
            target[...] = raw


def c_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of an array without gaps whose last axis is the fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
