"""The safetensors format: arrays by name, in one file, without executable content.

    8 bytes    length of the header, unsigned, little-endian
    header     JSON: name -> {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]},
               and "__metadata__" -> {...}
    data       the arrays, C order, little-endian; offsets count from here, and leave no gap

Files come from strangers, so everything the header says is checked against the file before it is
used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.files import replacing
from numgpt.formats.tensors import DTYPES, StoredTensor
from numgpt.messages import shown
from numgpt.reading import LFS_POINTER, check_no_pointer
from numgpt.runtime.fewer_bits import to_bfloat16

LARGEST_JSON = 1 << 25  # bytes of a header
MOST_AXES = 64  # as in NumPy
LONGEST_AXIS = 1 << 59
CODES = {dtype: code for code, dtype in DTYPES.items()}
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Raises ValueError naming the file and the tensor where the file is cut short or contradicts
    itself.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(len(LFS_POINTER))
        check_no_pointer(path, head)
        length = int.from_bytes(head[:8], "little")
        file.seek(8)
        if length > min(LARGEST_JSON, size - 8):
            raise ValueError(
                f"{path} is not a whole safetensors file: its header would have {length} bytes (at"
                f" most {LARGEST_JSON}), the file has {size}; copy or download it again"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise ValueError(
            f"{path}: the safetensors header is not a JSON object; copy or download it again"
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: __metadata__ in the safetensors header is not texts by name")
    start = end = 8 + length
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if (begin := tensor.offset) != end:
            problem = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            raise ValueError(f"{tensor} begins at offset {begin - start} and {problem}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(
            f"{path} is {size} bytes long, its tensors end at {end}; copy or download it again"
        )
    return tensors, metadata


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    dtype: str = "float32",
    report: Callable[[str], None] = lambda name: None,
) -> None:
    """Write arrays under their names, floating-point ones as `dtype` ("float32", "float16",
    "bfloat16"); uint16 are bfloat16's bits.  `report` is called with each name as its turn comes.

    The file appears whole or not at all: it is written under a temporary name, flushed and renamed.
    Raises OverflowError naming the tensor where a value is too large for the dtype.
    """
    stored = storage_dtype(dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, array in tensors.items():
        code = stored if array.dtype.kind == "f" else CODES[array.dtype]
        end = offset + array.size * DTYPES[code].itemsize
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * ((-8 - len(encoded)) % 64)  # so that the data is aligned, mapped too
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, array in tensors.items():
            report(name)
            values = converted(name, np.asarray(array), header[name]["dtype"])
            file.write(np.ascontiguousarray(values).data)


def storage_dtype(dtype: str) -> str:
    """safetensors' name for a dtype that models are stored in.  Raises ValueError for any other."""
    if dtype not in STORED:
        raise ValueError(
            f"dtype={shown(dtype)} is not supported: choose one of {', '.join(STORED)}"
        )
    return STORED[dtype]


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    """A tensor, after checking that its entry makes sense; the data begin at `start`."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{path}: tensor {shown(name)} lacks dtype, shape or data_offsets"
        ) from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{path}: tensor {shown(name)} has dtype {shown(dtype)}: known are {', '.join(DTYPES)}"
        )
    is_shape = isinstance(shape, list) and len(shape) <= MOST_AXES
    numbers = [*shape, begin, end] if is_shape else [None]
    if not all(type(number) is int and 0 <= number < LONGEST_AXIS for number in numbers):
        raise ValueError(
            f"{path}: tensor {shown(name)} has shape {shown(shape)} at {shown(begin)} to"
            f" {shown(end)}; copy or download it again"
        )
    tensor = StoredTensor(path, name, dtype, tuple(shape), start + begin)
    if end - begin != tensor.nbytes:
        raise ValueError(
            f"{tensor}, {dtype} of shape {shown(shape)}, needs {shown(tensor.nbytes)} bytes, its"
            f" offsets give {end - begin}"
        )
    return tensor


def converted(name: str, array: np.ndarray, code: str) -> np.ndarray:
    """An array as files of this dtype hold it."""
    if code == "BF16" and array.dtype != DTYPES[code]:  # rounded; NaN stays NaN
        rounded = to_bfloat16(np.ascontiguousarray(array, np.float32))
        rounded[np.isnan(array)] = 0x7FC0
        return rounded
    with np.errstate(over="ignore"):
        stored = array.astype(DTYPES[code], copy=False)
    if code == "F16" and np.isinf(stored).any():
        raise OverflowError(
            f"{name} holds values beyond float16's 65504: save as bfloat16 or float32 instead"
        )
    return stored
