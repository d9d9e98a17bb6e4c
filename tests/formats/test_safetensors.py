"""safetensors: round trips, equality with the reference library, damaged and hostile files."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import overwrite, refused

from numgpt.formats import read_safetensors, write_safetensors
from numgpt.formats.tensors import DTYPES

ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
        lambda n: n != "__metadata__"
    ),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=4,
)


def values(path):
    tensors, _ = read_safetensors(path)
    result = {}
    for name, tensor in tensors.items():
        result[name] = np.empty(tensor.shape, np.float32)
        tensor.read_into(result[name])
    return result


@given(arrays=ARRAYS)
def test_save_then_load_is_the_identity(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("s") / "a.safetensors"
    write_safetensors(path, arrays, {"note": "é"})
    loaded = values(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert read_safetensors(path)[1]["note"] == "é"


@pytest.mark.live("safetensors")
@given(arrays=ARRAYS)
@settings(max_examples=20)
def test_the_reference_library_reads_what_we_write_and_the_other_way(tmp_path_factory, arrays):
    import safetensors.numpy as reference

    directory = tmp_path_factory.mktemp("s")
    write_safetensors(directory / "ours", arrays)
    for name, array in reference.load_file(directory / "ours").items():
        np.testing.assert_array_equal(array, arrays[name])
    reference.save_file(arrays, directory / "theirs")
    for name, array in values(directory / "theirs").items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.live("torch", "transformers")
@given(array=hnp.arrays(np.float32, (40,), elements=st.floats(width=32)))
@settings(max_examples=100)
def test_bfloat16_rounds_as_pytorch_does(tmp_path_factory, array):
    import torch

    path = tmp_path_factory.mktemp("s") / "a.safetensors"
    write_safetensors(path, {"x": array}, dtype="bfloat16")
    expected = torch.tensor(array).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values(path)["x"], expected)


def test_float16_refuses_what_it_can_not_hold(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(OverflowError, match=r"big .*bfloat16"):
        write_safetensors(path, {"big": np.array([1e5], np.float32)}, dtype="float16")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.safetensors"]
    with pytest.raises(ValueError, match="int8"):
        write_safetensors(path, {}, dtype="int8")


def raw_file(path, header, data=b"\0" * 16):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def entry(begin, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"[" * 200_000, "not a JSON object"),
        ({"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, "'a' has dtype"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "'b' .*overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, "'b' .*gap"),
        ({"a": entry(0, 8)}, "16|end at"),
        ({"a": entry(0, 8), "b": entry(8, 24, shape=(4,))}, "end at"),
        ({"a": entry(0, 16)}, "'a'.* needs 8 bytes"),
        ({"a": entry(0, 8, "F8")}, "'a' has dtype 'F8'"),
        ({"a": entry(8, 0)}, "'a'"),
        ({"a": entry(-8, 0)}, "'a'"),
        ({"a": entry(0, 8, shape=(-2,))}, "'a'"),
        ({"a": entry(0, 8, shape=(2.0,))}, "'a'"),
        ({"a": {"dtype": "F32"}}, "'a' lacks"),
        ({"a": 3}, "'a' lacks"),
        ({"a": entry(0, 1 << 70, shape=(1 << 68,))}, "'a'|end at"),
    ],
)
def test_refuses_a_header_that_contradicts_the_file(tmp_path, header, message):
    path = raw_file(tmp_path / "bad.safetensors", header)
    refused(lambda: read_safetensors(path), message, path)


def test_refuses_a_file_cut_short_anywhere(tmp_path):
    whole = tmp_path / "whole.safetensors"
    write_safetensors(
        whole, {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    )
    data = whole.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        overwrite(cut, data[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            read_safetensors(cut)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.zeros(3, np.float32)})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_safetensors(path, {"a": np.ones(3, np.float32)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("first", range(1, 8))
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "I32", "I16"])
def test_data_that_are_not_aligned_are_read(tmp_path, first, dtype):
    array = np.arange(1, 6).astype(DTYPES[dtype]).reshape(5)
    begin, end = first, first + array.nbytes
    header = {"a": entry(0, begin, "U8", (first,)), "b": entry(begin, end, dtype, (5,))}
    path = raw_file(tmp_path / "a.safetensors", header, bytes(first) + array.tobytes())
    stored = read_safetensors(path)[0]["b"]
    np.testing.assert_array_equal(stored.raw, array)
    read = np.empty(5, np.float32)
    stored.read_into(read)
    bits = array.astype(np.uint32) << 16
    np.testing.assert_array_equal(read, bits.view(np.float32) if dtype == "BF16" else array)
