"""A matrix that is stored otherwise than it is multiplied, in rows: W (R, C) = scales · numbers.

oneDNN multiplies what it has packed (onednn.py). Where it is missing, or the CPU's instructions
are, some rows at a time are written out in float32, in a buffer that stays in the cache, and
multiplied by NumPy: that saves memory, if not time. So are they for dy W, which only a backward
pass asks for, on the way to the adapters of a frozen model. Which numbers are stored, and how they
become float32 again, fewer_bits.py says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from numgpt.runtime.kernels import cpu_flags
from numgpt.runtime.onednn import INPUTS, OUTPUTS, OneDNN, find_onednn
from numgpt.runtime.products import FEW_ROWS, SMALL_PRODUCT, SMALL_RESULT, matmul
from numgpt.runtime.scratch import address, empty, own_pages
from numgpt.runtime.threads import num_threads, parallel_for
from numgpt.runtime.weights import Weight

PANEL_BYTES = 1 << 21  # of rows that are written out in float32: they stay in the cache
LARGEST = 127  # of int8, with either sign

Panels = Iterable[tuple[slice, np.ndarray]]  # rows of W, and they in float32


class FewerBits(Weight):
    """W (R, C) = scales · stored numbers, in rows, which is read and not trained."""

    kind: str  # oneDNN's name
    needs: frozenset[str]  # for oneDNN's products the CPU has one of these
    widest: float = math.inf  # of the rows that oneDNN multiplies
    scales: np.ndarray | None = None  # (R,)
    parts: tuple[str, ...] = ()  # what there is beside the numbers, (R,) each

    dtype = np.dtype(np.float32)  # of the products

    def __init__(self, rows: np.ndarray, library: OneDNN | None = None):
        """rows (R, C): the numbers as they are stored; `library` multiplies them, or NumPy."""
        self.shape = rows.shape
        self._pack(np.ascontiguousarray(rows), library)

    def _pack(self, rows: np.ndarray, library: OneDNN | None) -> None:
        fits = library is not None and rows.shape[1] <= self.widest
        shape = packed_shape(self.shape, rows.itemsize)
        packed = library.pack(self.kind, rows, shape) if library is not None and fits else None
        self.data = rows if packed is None else packed
        self.library = None if packed is None else library

    @classmethod
    def of_arrays(
        cls, arrays: Mapping[str, np.ndarray], shape: tuple[int, int], multiplied: bool = True
    ) -> FewerBits:
        """What `data`, in rows or packed, and `vectors` were of a matrix of this shape; in rows
        where it is not to be multiplied."""
        weight, library = object.__new__(cls), cls.multiplier() if multiplied else None
        weight.__dict__.update(arrays, shape=shape)
        if weight.data.shape == shape:
            weight._pack(weight.data, library)
        elif library is not None and library.order(cls.kind, *shape) is not None:
            weight.library = library
        else:
            weight._pack(packed_rows(weight.data, np.arange(shape[0]), shape[1]), library)
        return weight

    @classmethod
    def rounded(cls, matrix: np.ndarray, library: OneDNN | None) -> FewerBits:
        """Of a matrix (R, C) in float32."""
        raise NotImplementedError

    @classmethod
    @functools.cache
    def multiplier(cls) -> OneDNN | None:
        """oneDNN, where it is, the CPU has the instructions, and a trial gives what it should."""
        library = find_onednn()[0]
        if library is None or not cls.needs & cpu_flags():
            return None
        rng = np.random.default_rng(0)
        x, w = (rng.integers(-100, 100, (n, 70)).astype(np.float32) for n in (5, 130))
        x[:, 0] = w[:, 0] = LARGEST  # then no number is rounded
        try:
            weight = cls.rounded(w, library)
            found = weight.transposed_product(x), weight[np.arange(130)], np.asarray(weight)
        except (AttributeError, RuntimeError):  # as oneDNN 2 has other functions
            return None
        right = all(map(np.array_equal, found, (x @ w.T, w, w)))
        return weight.library if right else None

    # --- what each kind does in its own way ---

    def write_out(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Stored numbers, without scales -> `out`, in float32."""
        raise NotImplementedError

    def multiply(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = x Wᵀ, by oneDNN.  x (N, C), out (N, R), float32, in C order."""
        raise NotImplementedError

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(np.isfinite(vector).all() for vector in self.vectors().values())

    # --- what a matrix is asked for ---

    def transposed_product(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        x, y = dy, empty((len(dy), self.shape[0]), dy.dtype) if out is None else out
        if self.library is not None and x.dtype == np.float32:
            whole = y if y.flags.c_contiguous else empty(y.shape)
            if len(x):
                self.multiply(np.ascontiguousarray(x), whole)
            if whole is not y:
                y[...] = whole
            return y

        def some(panels: Panels) -> None:
            for rows, panel in panels:
                np.matmul(x, panel.T, out=y[:, rows])

        self._in_panels(some, len(x), x.dtype)
        if self.scales is not None:
            y *= self.scales
        return y

    def product(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        dy = x if self.scales is None else x * self.scales

        def some(panels: Panels) -> np.ndarray:
            total = np.zeros((len(dy), self.shape[1]), dy.dtype)
            for rows, panel in panels:
                total += matmul(dy[:, rows], panel)
            return total

        dx, *others = self._in_panels(some, len(dy), dy.dtype)
        for term in others:  # in an order that is always the same
            dx += term
        if out is None:
            return dx
        out[...] = dx
        return out

    def _in_panels(self, body: Callable[[Panels], Any], count: int, dtype: np.dtype) -> list[Any]:
        """Call body with panels of rows of W, written out without scales, to be multiplied with
        `count` rows; each thread with some of them."""
        unit = 1 if self.library is None else OUTPUTS
        height = PANEL_BYTES // 4 // self.shape[1]
        if 1 < count <= FEW_ROWS:
            height = min(SMALL_PRODUCT // (count * self.shape[1]), SMALL_RESULT // count)
        height = max(1, height // unit) * unit
        starts = range(0, self.shape[0], height)
        parts = [slice(start, min(start + height, self.shape[0])) for start in starts]
        threads = min(num_threads(), len(parts))

        def some(thread: int) -> Any:
            memory = empty((parts[0].stop, self.shape[1]), np.float32)
            panels = (
                (rows, self._panel(rows, memory).astype(dtype, copy=False))
                for rows in parts[thread::threads]
            )
            return body(panels)

        return parallel_for(some, threads)

    def _panel(self, rows: slice, memory: np.ndarray) -> np.ndarray:
        if self.library is None:
            panel = memory[: rows.stop - rows.start]
            self.write_out(self.data[rows], panel)
            return panel
        blocks = self.data[rows.start // OUTPUTS : -(-rows.stop // OUTPUTS)]
        return self.library.unpack(self.kind, blocks, self.shape[1])[: rows.stop - rows.start]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        if isinstance(ids, tuple):
            return np.asarray(self)[ids]
        if not isinstance(ids, np.ndarray) or (
            ids.size and not 0 <= ids.min() <= ids.max() < len(self)
        ):
            ids = np.asarray(np.arange(len(self))[ids])
        stored = (
            self.data[ids] if self.library is None else packed_rows(self.data, ids, self.shape[1])
        )
        rows = np.empty(stored.shape, np.float32)
        self.write_out(stored, rows)
        return rows if self.scales is None else rows * self.scales[ids][..., None]

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        return self[np.arange(self.shape[0])].astype(dtype or self.dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:  # of a copy, which may be read on another machine
        state = {n: value for n, value in self.__dict__.items() if n != "addresses"}
        if self.library is not None:
            plain = packed_rows(self.data, np.arange(self.shape[0]), self.shape[1])
            state |= {"data": plain, "library": None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack(self.data, self.multiplier())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.data, *self.vectors().values()))

    def vectors(self) -> dict[str, np.ndarray]:
        """What there is beside the numbers, by name, (R,) each."""
        return {name: getattr(self, name) for name in self.parts}

    @functools.cached_property
    def addresses(self) -> tuple[int, ...]:
        return tuple(map(address, (self.data, *self.vectors().values())))

    @classmethod
    def one_above_another(cls, weights: Sequence[FewerBits]) -> FewerBits | None:
        """[W₁; W₂; …] (ΣR, C), of which the weights are parts from now on; None where their rows
        do not fill whole blocks."""
        first = weights[0]
        unit = 1 if first.library is None else OUTPUTS
        if any(
            type(w) is not type(first) or w.library is not first.library for w in weights
        ) or any(w.shape[0] % unit for w in weights[:-1]):
            return None
        shape = sum(w.shape[0] for w in weights), first.shape[1]
        if first.library is not None and first.library.order(first.kind, *shape) is None:
            return None
        whole: FewerBits = object.__new__(type(first))
        whole.library = first.library
        whole.shape = shape
        for name in ("data", *first.parts):
            arrays = [getattr(w, name) for w in weights]
            joined = _joined(arrays)
            setattr(whole, name, joined)
            start = 0
            for w in weights:
                w.__dict__.pop("addresses", None)
                stop = start + len(getattr(w, name))
                setattr(w, name, joined[start:stop])
                start = stop
        return whole


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one above another: a view where they are neighbours in one file already."""
    first, base = arrays[0], arrays[0].base
    shape = sum(map(len, arrays)), *first.shape[1:]
    if (
        isinstance(base, np.ndarray)
        and base.flags.c_contiguous
        and all(b.base is base and address(a) + a.nbytes == address(b) for a, b in pairwise(arrays))
    ):
        start, size = address(first) - address(base), sum(array.nbytes for array in arrays)
        piece = base.reshape(-1).view(np.uint8)[start : start + size]
        return piece.view(first.dtype).reshape(shape)
    return np.concatenate(arrays, out=own_pages(shape, first.dtype))


def packed_shape(shape: tuple[int, int], itemsize: int) -> tuple[int, ...]:
    """Of packed weights (O, I)."""
    together = 4 // itemsize
    blocks = -(-shape[0] // OUTPUTS), -(-shape[1] // (INPUTS * together))
    return (*blocks, INPUTS, OUTPUTS, together)


def packed_rows(packed: np.ndarray, ids: np.ndarray, width: int) -> np.ndarray:
    """Rows of packed weights (O, I).  ids (…) -> (…, I)."""
    block, place = np.divmod(ids, OUTPUTS)
    whole = packed.shape[1] * packed.shape[2] * packed.shape[4]
    return packed[block, :, :, place].reshape(*ids.shape, whole)[..., :width]
