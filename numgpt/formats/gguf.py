"""GGUF, versions 2 and 3: the file format of llama.cpp. Metadata and tensors in one file.

    4 bytes       "GGUF"
    u32           version
    u64, u64      number of tensors, number of metadata entries
    metadata      name, type (u32), value; a string is its length (u64) and its UTF-8 bytes,
                  an array its items' type (u32), their number (u64) and the items
    tensors       name, number of dimensions (u32), these (u64 each, the fastest first),
                  type (u32), offset (u64)
    padding       to a multiple of general.alignment
    data          offsets count from here

All numbers are little-endian. Files come from strangers, so everything they say is checked before
it is used.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.formats.quantised import BLOCKS, QuantisedTensor
from numgpt.formats.tensors import DTYPES, LARGEST_HEADER, StoredTensor
from numgpt.messages import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
LARGEST_ALIGNMENT = 1 << 16
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# In the order of ggml's numbers for them, from 0.
TENSOR_TYPES = [
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16",
]  # fmt: skip
DAMAGED = "copy or download it again"


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether the file begins like one."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def read_gguf(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The metadata, and the tensors by their names in the file.

    Metadata values are int, float, bool, str, lists of str, and arrays of numbers. Raises
    ValueError naming the file and the entry where the file is cut short or contradicts itself.
    """
    path = Path(path)
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{path} is {size} bytes long, too short for GGUF: {DAMAGED}")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        if cursor.take(4, "the magic number") != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it doesn't begin with {MAGIC.decode()}")
        version = cursor.number("I", "the version")
        if version not in VERSIONS:
            other = " (big-endian?)" if version & 0xFFFF == 0 else ""
            raise ValueError(
                f"{path}: GGUF version {version}{other} is not supported, only 2 and 3"
            )
        tensor_count = cursor.number("Q", "the number of tensors")
        entry_count = cursor.number("Q", "the number of metadata entries")
        metadata: dict[str, Any] = {}
        for number in range(entry_count):
            name = cursor.string(f"the name of metadata entry {number}")
            metadata[name] = cursor.value(name)
        tensors: dict[str, StoredTensor] = {}
        for number in range(tensor_count):
            name = cursor.string(f"the name of tensor {number}")
            tensors[name] = _tensor(cursor, name)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= LARGEST_ALIGNMENT:
        raise ValueError(
            f"{path}: general.alignment={str(alignment)[:40]!r} is impossible: {DAMAGED}"
        )
    start = -(-cursor.place // alignment) * alignment
    for tensor in tensors.values():
        _place(tensor, start, alignment, size)
    return metadata, tensors


class _Cursor:
    """Reads one thing after another, never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.place = 0
        self.end = min(len(data), LARGEST_HEADER)

    def take(self, count: int, what: str) -> bytes:
        if count > self.end - self.place:
            raise ValueError(
                f"{self.path} ends within {what}, or that is damaged: it needs {count} bytes,"
                f" {self.end - self.place} are left; {DAMAGED}"
            )
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, code: str, what: str) -> Any:
        code = "<" + code
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def string(self, what: str) -> str:
        data = self.take(self.number("Q", what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is not UTF-8 text: {DAMAGED}") from None

    def value(self, name: str) -> Any:
        """The type and value of a metadata entry."""
        what = f"the metadata entry {shown(name)}"
        kind = self.number("I", what)
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {what} has a value of unknown type {kind}")
        kind, count = self.number("I", what), self.number("Q", what)
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if kind != STRING:
            raise ValueError(f"{self.path}: {what} has values of unknown type {kind}")
        return [self.string(what) for _ in range(count)]  # as far as the file goes


def _tensor(cursor: _Cursor, name: str) -> StoredTensor:
    """What an entry says; its offset counts from the beginning of the data."""
    what = f"tensor {shown(name)}"
    count = cursor.number("I", what)
    if count > MOST_DIMENSIONS:
        raise ValueError(f"{cursor.path}: {what} has {count} dimensions, more than 4: {DAMAGED}")
    shape = tuple(cursor.number("Q", what) for _ in range(count))[::-1]
    code = cursor.number("I", what)
    kind = TENSOR_TYPES[code] if code < len(TENSOR_TYPES) else f"type {code}"
    if kind not in BLOCKS and kind not in DTYPES:
        raise ValueError(
            f"{cursor.path}: {what} is stored as {kind}, which is not supported: take a file with"
            f" F32, F16, BF16, {', '.join(BLOCKS)}"
        )
    made = QuantisedTensor if kind in BLOCKS else StoredTensor
    return made(cursor.path, name, kind, shape, cursor.number("Q", what))


def _place(tensor: StoredTensor, start: int, alignment: int, size: int) -> None:
    """Let a tensor's offset count from the beginning of the file, after checking that all of it
    lies in there."""
    kind, shape, offset = tensor.dtype, tensor.shape, tensor.offset
    block_size = BLOCKS[kind][0] if kind in BLOCKS else 1
    if 0 in shape or (shape[-1] if shape else 1) % block_size:
        raise ValueError(f"{tensor} of type {kind} can't have shape {list(shape)}: {DAMAGED}")
    if offset % alignment or start + offset + tensor.nbytes > size:
        raise ValueError(
            f"{tensor}, {kind} of shape {list(shape)} at offset {offset}, does not lie within the"
            f" file of {size} bytes, or not on a multiple of {alignment}: {DAMAGED}"
        )
    tensor.offset += start
