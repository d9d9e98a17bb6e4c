"""TensorFlow's checkpoints ("tensor bundles", version 2), in which OpenAI released GPT-2.

    model.ckpt.index                  what there is: a table in LevelDB's format, names -> entries
    model.ckpt.data-00000-of-00001    the values: C order, one tensor after another, in n "shards"
    checkpoint                        text, names the newest bundle of its directory

    index     data blocks, metaindex block, index block, footer
    footer    handle of the metaindex block, handle of the index block, zeros up to 40 bytes, MAGIC
    handle    offset and size of a block, two varints
    block     entries; where those that share nothing begin ("restarts") and their count, uint32;
              then, outside the size, compression (1 byte, 0 for none), CRC-32C of all that (masked)
    entry     varints shared, non_shared, value_size; non_shared bytes of key, value_size of value;
              the first `shared` bytes of its key are those of the key before it

In the index block the values are the handles of the data blocks. In the data blocks the key ""
holds a BundleHeaderProto and each further key, a tensor's name, a BundleEntryProto: messages in
protocol buffers' wire format, numbered fields of which numgpt reads those named below. Files come
from strangers, so every number is checked before it is used.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numgpt.formats.crc32c import crc32c, mask
from numgpt.formats.tensors import DTYPES, StoredTensor
from numgpt.messages import shown

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes
TRAILER = 5  # bytes behind a block: compression, CRC
LARGEST_INDEX = 4_000_000  # bytes; GPT-2's indexes have 5 to 20 kB
LONGEST_NAME = 1000  # bytes: a short entry may share a long name, and names are kept in memory
MOST_AXES = 32
CODES = {1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 9: "I64", 10: "BOOL"}
CODES |= {14: "BF16", 19: "F16"}
CODES |= {7: "strings", 21: "variants"}  # left out: TensorFlow 2's notes on the objects it saved


class _RefusedError(ValueError):
    """What is wrong with an index and the way out; read_bundle adds the file's name."""

    def __init__(self, problem: str, mend: str = "copy or download it again"):
        self.problem = problem
        self.mend = mend


@dataclass(eq=False, repr=False, kw_only=True)
class ChecksummedTensor(StoredTensor):
    """An array whose file also tells its CRC, which is checked when the values are read."""

    checksum: int  # masked

    def read_into(self, target: np.ndarray) -> None:
        if mask(crc32c(self.raw.reshape(-1).view(np.uint8))) != self.checksum:
            raise ValueError(
                f"{self.path}: the values of tensor {shown(self.name)} don't match their checksum;"
                " copy or download it again"
            )
        super().read_into(target)


def find_bundle(directory: str | os.PathLike) -> Path | None:
    """The prefix of the bundle in a directory, None where there is none.

    Raises ValueError where it is unclear which bundle is meant.
    """
    directory = Path(directory)
    indexes = sorted(path for path in directory.glob("?*.index") if path.is_file())
    if not indexes:
        return None
    note = directory / "checkpoint"
    text = note.read_bytes()[:10_000].decode(errors="replace") if note.is_file() else ""
    if named := re.search(r'^\s*model_checkpoint_path: *"([^"\n]+)"', text, re.MULTILINE):
        name = re.split(r"[/\\]", named[1])[-1]  # the directory may have moved
        if directory / f"{name}.index" not in indexes:
            raise ValueError(
                f"{note}: names the bundle {shown(name)}, but {name:.80}.index is not"
                " there; copy or download it too, or name another bundle"
            )
        return directory / name
    if len(indexes) > 1:
        listed = ", ".join(path.name for path in indexes)
        raise ValueError(f"{directory}: holds several bundles, name one of {listed}")
    return directory / indexes[0].name.removesuffix(".index")


def read_bundle(prefix: str | os.PathLike) -> dict[str, ChecksummedTensor]:
    """The tensors of a bundle by name, their values still in the files.

    The prefix is the path without ".index"; with it will do, too. Tensors of strings are left out.
    Raises ValueError naming the file where one is missing, cut short or contradicts itself.
    """
    prefix = os.fspath(prefix).removesuffix(".index")
    index = Path(f"{prefix}.index")
    with open(index, "rb") as file:
        data = file.read(LARGEST_INDEX + 1)
    try:
        if len(data) > LARGEST_INDEX:
            raise _RefusedError(f"is larger than the {LARGEST_INDEX} bytes that an index may have")
        table = _table(data)
        key, header = next(table, (None, b""))
        if key != b"":
            raise _RefusedError("holds no bundle header")
        shards = _shards(prefix, header)
        # Keys that begin with 0 are those of slices, whose tensor has an entry that says so.
        tensors = [_tensor(key, value, shards) for key, value in table if not key.startswith(b"\0")]
    except _RefusedError as error:
        raise ValueError(f"{index}: {error.problem}; {error.mend}") from None
    return {tensor.name: tensor for tensor in tensors if tensor.dtype in DTYPES}


def _shards(prefix: str, header: bytes) -> list[tuple[Path, int]]:
    """The files that hold the values, and their lengths, as the bundle's header tells."""
    fields = _message(header)
    count, endianness = _number(fields, 1), _number(fields, 2)
    version = _number(_message(_bytes(fields, 3)), 2)
    if endianness != 0:
        raise _RefusedError("its values are big-endian", "save it again on a little-endian machine")
    if version > 1:
        raise _RefusedError(f"needs a reader of version {version}", "numgpt reads version 1")
    if not 1 <= count <= 99_999:
        raise _RefusedError(f"its header tells of {count} data files")
    shards = []
    for shard in range(count):
        path = Path(f"{prefix}.data-{shard:05d}-of-{count:05d}")
        if not path.is_file():
            missing = f"its file {path.name} is missing"
            raise _RefusedError(missing, "copy or download that one, too")
        shards.append((path, path.stat().st_size))
    return shards


def _tensor(key: bytes, value: bytes, shards: list[tuple[Path, int]]) -> ChecksummedTensor:
    name = key.decode(errors="backslashreplace")
    try:
        if name.encode() != key:
            raise _RefusedError("has a name that is not UTF-8")
        fields = _message(value)
        code, shard, offset, size = (_number(fields, number) for number in (1, 3, 4, 5))
        if 7 in fields:
            raise _RefusedError("is stored in slices", "save it again without a partitioner")
        if code not in CODES:
            raise _RefusedError(f"has the unknown type {code}", "save it again as float32")
        if not 0 <= shard < len(shards):
            raise _RefusedError(f"is in shard {shard} of {len(shards)}")
        if offset < 0 or size < 0:
            raise _RefusedError(f"has offset {offset} and size {size}")
        path, length = shards[shard]
        if offset + size > length:
            raise ValueError(
                f"{path}: ends at byte {length}, tensor {shown(name)} at {offset + size};"
                " copy or download it again"
            )
        dtype, shape = CODES[code], _shape(_bytes(fields, 2))
        needed = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else size
        if size != needed:
            raise _RefusedError(f"has {size} bytes, as {dtype} of shape {shape} it needs {needed}")
        checksum = int.from_bytes(_bytes(fields, 6), "little")
    except _RefusedError as error:
        raise _RefusedError(f"tensor {shown(name)} {error.problem}", error.mend) from None
    return ChecksummedTensor(path, name, dtype, shape, offset, checksum=checksum)


def _shape(message: bytes) -> tuple[int, ...]:
    fields = _message(message)
    shape = tuple(_number(_message(axis), 1) for axis in _all_bytes(fields, 2)[: MOST_AXES + 1])
    if _number(fields, 3) or any(axis < 0 for axis in shape):
        raise _RefusedError("has an axis of unknown length")
    # NumPy counts bytes in 63 bits, also where another axis is empty
    if len(shape) > MOST_AXES or math.prod(max(axis, 1) for axis in shape) >= 1 << 59:
        raise _RefusedError("has too many or too long axes")
    return shape


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise _RefusedError(f"its {len(data)} bytes don't end as an index does")
    handles, _ = _varints(data[-FOOTER:-8], 0, 4)
    blocks = [_varints(value, 0, 2)[0] for _, value in _entries(_block(data, handles[2:]))]
    if sum(size for _, size in blocks) > len(data):  # one could be there any number of times
        raise _RefusedError(f"its blocks have more than its {len(data)} bytes")
    for handle in blocks:
        yield from _entries(_block(data, handle))


def _block(data: bytes, handle: list[int]) -> bytes:
    offset, size = handle
    end = offset + size
    if end + TRAILER > len(data) - FOOTER:
        raise _RefusedError(
            f"the block at byte {offset} ends at {end}, beyond its {len(data)} bytes"
        )
    if mask(crc32c(data[offset : end + 1])).to_bytes(4, "little") != data[end + 1 : end + TRAILER]:
        raise _RefusedError(f"the block at byte {offset} doesn't match its checksum")
    if data[end]:
        how = "is compressed (snappy)" if data[end] == 1 else f"is compressed (method {data[end]})"
        raise _RefusedError(how, "save it again with TensorFlow, which is not")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (count + 1)
    if end < 0:
        raise _RefusedError(f"a block of {len(block)} bytes tells of {count} restarts")
    at, key = 0, b""
    while at < end:
        (shared, fresh, size), at = _varints(block, at, 3)
        if shared > len(key) or fresh + size > end - at:
            raise _RefusedError(f"the entry behind {shown(key)} contradicts its block")
        if shared + fresh > LONGEST_NAME:
            raise _RefusedError(f"a name has more than {LONGEST_NAME} bytes", "shorten it")
        key = key[:shared] + block[at : at + fresh]
        at += fresh + size
        yield key, block[at - size : at]


def _varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Numbers of 64 bits, seven to a byte, lowest first, and the place behind them."""
    numbers = []
    for _ in range(count):
        number = 0
        for place, byte in enumerate(data[at : at + 10]):
            number |= (byte & 127) << 7 * place
            if byte < 128:
                break
        else:
            raise _RefusedError("has a number that is cut short or longer than ten bytes")
        if number >> 64:
            raise _RefusedError(f"has the number {number}, which needs more than 64 bits")
        numbers.append(number)
        at += place + 1
    return numbers, at


def _message(data: bytes) -> dict[int, list[int | bytes]]:
    """A protocol buffer's fields by number: varints as int, the others as bytes."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        (tag,), at = _varints(data, at, 1)
        kind = tag & 7
        if kind not in (0, 1, 2, 5):
            raise _RefusedError(f"has a field of the unknown kind {kind}")
        value: int | bytes
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind in (0, 2):
            (size,), at = _varints(data, at, 1)
            value = size
        if kind != 0:
            value = data[at : at + size]
            at += size
        fields.setdefault(tag >> 3, []).append(value)
    if at > len(data):
        raise _RefusedError("has a field that is cut short")
    return fields


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    """A signed varint; the last one counts, and 0 where there is none."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise _RefusedError(f"has bytes in field {number} instead of a number")
    return value - (1 << 64) if value >> 63 else value


def _bytes(fields: dict[int, list[int | bytes]], number: int) -> bytes:
    return (_all_bytes(fields, number) or [b""])[-1]


def _all_bytes(fields: dict[int, list[int | bytes]], number: int) -> list[bytes]:
    values = [value for value in fields.get(number, []) if isinstance(value, bytes)]
    if len(values) != len(fields.get(number, [])):
        raise _RefusedError(f"has a number in field {number} instead of bytes")
    return values
