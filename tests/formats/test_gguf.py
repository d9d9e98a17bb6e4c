"""GGUF as a container: both ways with the gguf package, and files that contradict themselves."""

from pathlib import Path

import numpy as np
import pytest
from formats.gguf_writer import (
    KINDS,
    TYPES,
    entry,
    gguf_file,
    header,
    padded,
    random_blocks,
    string,
    tensor_entry,
    u32,
    u64,
)
from support import refused

from numgpt.formats.gguf import is_gguf, read_gguf

METADATA = {
    "general.architecture": ("str", "gpt2"),
    "u8": ("u8", 255),
    "i8": ("i8", -128),
    "u16": ("u16", 65535),
    "i16": ("i16", -32768),
    "u32": ("u32", (1 << 32) - 1),
    "i32": ("i32", -(1 << 31)),
    "u64": ("u64", (1 << 64) - 1),
    "i64": ("i64", -(1 << 63)),
    "f32": ("f32", 0.5),
    "f64": ("f64", 0.1),
    "yes": ("bool", True),
    "no": ("bool", False),
    "text": ("str", "Ġthé\n\0"),
    "empty text": ("str", ""),
}
SCALARS = [kind for kind in KINDS if kind not in ("str", "array")]
ARRAYS = {f"several {kind}": ("array", (kind, [0, 1, 1])) for kind in SCALARS}
ARRAYS |= {"texts": ("array", ("str", ["a", "", "né"])), "none": ("array", ("str", []))}


def tensors(rng):
    """One of each type, quantised ones with small scales."""
    made = []
    for kind, (_, block, size) in TYPES.items():
        shape = (2, 3) if block == 1 else (3, 2 * block)
        raw = rng.integers(0, 100, 6 * size, np.uint8).tobytes()
        if kind.startswith("Q"):
            raw = random_blocks(kind, 6, rng).tobytes()
        made.append((f"of {kind}", kind, shape, raw))
    return [*made, ("vector", "F32", (5,), bytes(20)), ("scalar", "F32", (), bytes(4))]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def assert_same_metadata(read, metadata):
    assert list(read) == list(metadata)
    for name, (kind, value) in metadata.items():
        if kind == "array" and value[0] != "str":
            assert read[name].tolist() == value[1]
            assert read[name].dtype == np.dtype(KINDS[value[0]][1])
        else:
            assert read[name] == (value[1] if kind == "array" else value)
            assert type(read[name]) is (list if kind == "array" else type(value))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 8, 32, 64, 4096])
def test_reads_every_type(tmp_path, version, alignment):
    metadata = METADATA | ARRAYS
    if alignment is not None:
        metadata |= {"general.alignment": ("u32", alignment)}
    expected = tensors(np.random.default_rng(0))
    path = write(tmp_path / "a.gguf", gguf_file(metadata, expected, version))
    assert is_gguf(path)
    read, stored = read_gguf(path)
    assert_same_metadata(read, metadata)
    assert list(stored) == [name for name, *_ in expected]
    for name, kind, shape, raw in expected:
        tensor = stored[name]
        assert (tensor.name, tensor.dtype, tensor.shape) == (name, kind, shape)
        assert tensor.offset % (alignment or 32) == 0
        assert np.array(tensor.raw).tobytes() == raw


@pytest.mark.live("gguf")
@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_reads_what_the_gguf_package_writes(tmp_path, alignment):
    import gguf

    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    types = {"u": "UINT", "i": "INT", "f": "FLOAT"}
    for name, (kind, value) in list(METADATA.items())[1:]:
        named = {"bool": "BOOL", "str": "STRING"}.get(kind) or types[kind[0]] + kind[1:]
        writer.add_key_value(name, value, gguf.GGUFValueType[named])
    arrays = {"numbers": [1, 2, -3], "halves": [0.5, 1.5], "bools": [True, False]}
    arrays |= {"texts": ["a", "Ġthé"]}
    for name, values in arrays.items():
        writer.add_array(name, values)
    expected = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(7, dtype=np.float16),
        "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "d": np.arange(5, dtype=np.float64),
    }
    blocks = {kind: random_blocks(kind, 4, np.random.default_rng(1)) for kind in ("Q8_0", "Q6_K")}
    for name, array in expected.items():
        writer.add_tensor(name, array)
    for kind, raw in blocks.items():
        writer.add_tensor(kind, raw.reshape(2, -1), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read, stored = read_gguf(path)
    for name, (_, value) in METADATA.items():
        assert read[name] == value
    for name, values in arrays.items():
        assert list(read[name]) == values
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name].raw, array)
    for kind, raw in blocks.items():
        array = np.empty(stored[kind].shape, np.float32)
        stored[kind].read_into(array)
        theirs = gguf.dequantize(raw.reshape(2, -1), gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(array, theirs)


@pytest.mark.live("gguf")
@pytest.mark.parametrize("alignment", [32, 128])
def test_the_gguf_package_reads_what_the_writer_of_these_tests_writes(tmp_path, alignment):
    import gguf

    metadata = METADATA | ARRAYS | {"general.alignment": ("u32", alignment)}
    del metadata["none"]  # which the package can't read
    expected = [tensor for tensor in tensors(np.random.default_rng(0)) if tensor[2]]
    path = write(tmp_path / "a.gguf", gguf_file(metadata, expected))
    reader = gguf.GGUFReader(path)
    for name, (kind, value) in metadata.items():
        assert reader.get_field(name).contents() == (value[1] if kind == "array" else value)
    for theirs, (name, kind, shape, raw) in zip(reader.tensors, expected, strict=True):
        assert (theirs.name, theirs.tensor_type.name) == (name, kind)
        assert tuple(theirs.shape[::-1].tolist()) == shape
        assert theirs.data.tobytes() == raw


# Files that contradict themselves


def refusal(path: Path, message: str) -> None:
    assert refused(lambda: read_gguf(path), message, path, peak=1_000_000).startswith(str(path))


TINY = {"general.architecture": ("str", "gpt2"), "list": ("array", ("i32", [1, 2]))}
TINY |= {"texts": ("array", ("str", ["a", "b"]))}
TINY_TENSORS = [("a", "F32", (2, 4), bytes(32)), ("b", "F16", (16,), bytes(32))]


@pytest.mark.parametrize("version", [2, 3])
def test_refuses_a_file_cut_short_anywhere(tmp_path, version):
    whole = gguf_file(TINY, TINY_TENSORS, version)
    path = write(tmp_path / "a.gguf", whole)
    assert len(read_gguf(path)[1]) == 2
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(lambda: read_gguf(path), "too short|ends within|does not lie within", path)


HUGE = (1 << 64) - 1
NAME = string("name")
ONE = tensor_entry("w", 0, (8,), 0)


def one_tensor(info: bytes, data: int = 32) -> bytes:
    return padded(header([], [info]), 32) + bytes(data)


def one_entry(data: bytes, count: int = 1) -> bytes:
    return header([data], [], entry_count=count) + bytes(8)


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return one_entry(NAME + u32(9) + u32(kind) + u64(count) + data)


def aligned(kind: str, value: object) -> bytes:
    return one_entry(entry("general.alignment", kind, value))


REFUSED = {
    "magic": (b"GGML" + bytes(60), "doesn't begin with GGUF"),
    "version 1": (header([], [], 1) + bytes(8), "version 1 is not supported"),
    "version 4": (header([], [], 4) + bytes(8), "version 4 is not supported"),
    "big-endian": (b"GGUF" + b"\0\0\0\3" + bytes(40), r"\(big-endian\?\)"),
    "tensors": (header([], [], tensor_count=HUGE) + bytes(4), "ends within the name of tensor 0"),
    "more tensors": (header([], [ONE], tensor_count=2) + bytes(4), "the name of tensor 1"),
    "entries": (header([], [], entry_count=HUGE) + bytes(4), "the name of metadata entry 0"),
    "name": (one_entry(u64(HUGE)), r"the name of metadata entry 0.*18446744073709551615 bytes"),
    "name is no text": (one_entry(entry(b"\xff", "u8", 1)), "metadata entry 0 is not UTF-8"),
    "kind": (one_entry(NAME + u32(13)), "'name' has a value of unknown type 13"),
    "scalar": (one_entry(NAME + u32(10))[:-8], "ends within the metadata entry 'name'"),
    "string": (one_entry(NAME + u32(8) + u64(HUGE)), "the metadata entry 'name'"),
    "string is no text": (one_entry(entry("name", "str", b"\xc3")), "'name' is not UTF-8"),
    "name of two lines": (one_entry(string("a\nb") + u32(8) + u64(99)), r"entry 'a\\nb'"),
    "kind cut short": (one_entry(string("ab\nc"))[:-7], r"'ab\\nc'"),
    "numbers": (array(0, 1 << 40), "entry 'name'"),
    "numbers of 64 bits": (array(10, HUGE), "entry 'name'"),
    "texts": (array(8, HUGE), "entry 'name'"),
    "nested array": (array(9, 1, u32(0) + u64(1) + b"\1"), "'name' has values of unknown type 9"),
    "array of unknown": (array(99, 1), "'name' has values of unknown type 99"),
    "tensor's name": (one_tensor(u64(1 << 33)), "the name of tensor 0"),
    "tensor's name is no text": (one_tensor(string(b"\x80")), "name of tensor 0 is not UTF-8"),
    "tensor's name of two lines": (one_tensor(tensor_entry("a\nb", 0, (0,), 0)), r"'a\\nb'"),
    "long name": (one_tensor(tensor_entry("w" * 9999, 31, (8,), 0)), "'w.*w' is stored as type"),
    "long name of an entry": (one_entry(string("n" * 9999) + u32(13)), "'n.*n' has a value of"),
    "axes": (one_tensor(string("w") + u32(5)), "'w' has 5 dimensions"),
    "many axes": (one_tensor(string("w") + u32((1 << 32) - 1)), "'w' has 4294967295 dimensions"),
    "shape": (one_tensor(tensor_entry("w", 0, (9,), 0)), r"'w', F32 of shape \[9\].*not lie"),
    "long axis": (one_tensor(tensor_entry("w", 0, (HUGE,), 0)), "'w', F32 of shape.*not lie"),
    "long axes": (one_tensor(tensor_entry("w", 0, (HUGE,) * 4, 0)), "'w', F32 of shape"),
    "overflow": (one_tensor(tensor_entry("w", 0, (1 << 32, 1 << 32), 0)), "'w', F32 of shape"),
    "empty axis": (one_tensor(tensor_entry("w", 0, (0, 8), 0)), r"'w'.*can't have shape \[0, 8\]"),
    "part of a block": (one_tensor(tensor_entry("w", 8, (2, 16), 0)), r"'w' of type Q8_0 can't"),
    "part of a K block": (one_tensor(tensor_entry("w", 12, (8, 32), 0)), "'w' of type Q4_K can't"),
    "scalar in blocks": (one_tensor(tensor_entry("w", 8, (), 0)), "'w' of type Q8_0 can't"),
    "blocks": (one_tensor(tensor_entry("w", 8, (32,), 0)), "'w', Q8_0 of shape.*not lie"),
    "offset": (one_tensor(tensor_entry("w", 0, (8,), 32)), "'w'.*at offset 32"),
    "far offset": (one_tensor(tensor_entry("w", 0, (8,), HUGE - 31)), "'w'.*at offset 184467"),
    "unaligned": (one_tensor(tensor_entry("w", 0, (1,), 8)), "'w'.*not on a multiple of 32"),
    "Q2_K": (one_tensor(tensor_entry("w", 10, (256,), 0)), "'w' is stored as Q2_K.*take a file"),
    "type in a gap": (one_tensor(tensor_entry("w", 31, (8,), 0)), "'w' is stored as type 31"),
    "type": (one_tensor(tensor_entry("w", HUGE >> 32, (8,), 0)), "stored as type 4294967295"),
    "alignment 0": (aligned("u32", 0), "general.alignment='0'"),
    "large alignment": (aligned("u32", 1 << 17), "general.alignment='131072'"),
    "negative alignment": (aligned("i32", -8), "general.alignment='-8'"),
    "text as alignment": (aligned("str", "32"), "alignment='32'"),
    "bool as alignment": (aligned("bool", True), "alignment='True'"),
    "long text as alignment": (aligned("str", "9" * 5000), "alignment='999"),
    "list as alignment": (aligned("array", ("i32", [1] * 900)), "general.alignment="),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_a_file_that_contradicts_itself(tmp_path, data, message):
    refusal(write(tmp_path / "a.gguf", data), message)
