"""Writes TensorFlow's bundles from the description of the format, for the tests, good and bad."""

import functools
from pathlib import Path

import numpy as np

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
# By TensorFlow's DataType; uint16 stands for the bits of bfloat16.
CODES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9}
CODES |= {"bool": 10, "uint16": 14, "float16": 19}
CODES = {np.dtype(name): code for name, code in CODES.items()}


@functools.cache
def plain_crc32c(data: bytes) -> int:
    """The definition, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = plain_crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative ones take ten bytes
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def number_field(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def bytes_field(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def header(shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    version = number_field(1, 1) + number_field(2, min_consumer)
    return number_field(1, shards) + number_field(2, endianness) + bytes_field(3, version)


def shape_message(shape: tuple[int, ...]) -> bytes:
    return b"".join(bytes_field(2, number_field(1, axis)) for axis in shape)


def entry(
    code: int, shape: tuple[int, ...], offset: int, size: int, crc: bytes = bytes(4), shard: int = 0
) -> bytes:
    """A BundleEntryProto."""
    return (
        number_field(1, code)
        + bytes_field(2, shape_message(shape))
        + number_field(3, shard)
        + number_field(4, offset)
        + number_field(5, size)
        + varint(6 << 3 | 5)
        + crc
    )


def block(entries: list[tuple[bytes, bytes]], interval: int = 16) -> bytes:
    """The contents of a block; every `interval` entries one shares nothing."""
    result, restarts, before = b"", [], b""
    for position, (key, value) in enumerate(entries):
        shared = 0
        if position % interval == 0:
            restarts.append(len(result))
        else:
            while key[: shared + 1] == before[: shared + 1] and shared < len(key):
                shared += 1
        lengths = varint(shared) + varint(len(key) - shared) + varint(len(value))
        result += lengths + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return result + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def table(
    blocks: list[bytes],
    keys: list[bytes],
    metaindex: bytes | None = None,
    index: bytes | None = None,
    compression: int = 0,
) -> bytes:
    """A whole index of these contents of data blocks, whose last keys are `keys`; `index` takes the
    place of the index block's contents."""
    result, handles = b"", []

    def add(contents: bytes) -> None:
        nonlocal result
        handles.append(varint(len(result)) + varint(len(contents)))
        typed = contents + bytes([compression])
        result += typed + masked(typed)

    for contents in blocks:
        add(contents)
    pairs = list(zip(keys, handles, strict=True))
    add(block([]) if metaindex is None else metaindex)
    add(block(pairs, interval=1) if index is None else index)
    return result + (handles[-2] + handles[-1]).ljust(40, b"\0") + MAGIC


def index_of(entries: list[tuple[bytes, bytes]], a_block: int = 1000, interval: int = 16) -> bytes:
    """An index with `a_block` entries to a data block."""
    groups = [entries[at : at + a_block] for at in range(0, len(entries), a_block)]
    return table([block(group, interval) for group in groups], [group[-1][0] for group in groups])


def write_bundle(
    prefix: Path,
    shards: list[dict[str, np.ndarray]],
    extra: list[tuple[bytes, bytes]] | None = None,
    a_block: int = 1000,
    interval: int = 16,
) -> None:
    entries = [*(extra or [])]
    for shard, arrays in enumerate(shards):
        data = b""
        for name, array in arrays.items():
            raw = array.tobytes()
            code = CODES[array.dtype]
            message = entry(code, array.shape, len(data), len(raw), masked(raw), shard)
            entries.append((name.encode(), message))
            data += raw
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{len(shards):05d}").write_bytes(data)
    index = index_of([(b"", header(len(shards))), *sorted(entries)], a_block, interval)
    prefix.with_name(f"{prefix.name}.index").write_bytes(index)
