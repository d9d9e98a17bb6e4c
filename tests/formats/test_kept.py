"""Models that were saved in fewer bits: mapped when they are loaded so, and the same numbers."""

import json

import numpy as np
import pytest
from models.test_fewer_bits import IDS, MODELS
from support import is_mapped

from numgpt import GPT, CharTokenizer, GPTConfig, cli, formats
from numgpt.formats import read_safetensors, write_safetensors
from numgpt.runtime import FewerBits, Weight
from numgpt.runtime.fewer_bits import KINDS
from numgpt.runtime.stored_rows import packed_shape

LETTERS = CharTokenizer([chr(200 + number) for number in range(130)])


@pytest.fixture(params=MODELS)
def whole(request, tmp_path):
    """A directory with a model in float32."""
    kind, config = MODELS[request.param]
    model = kind(config, seed=1)
    for name, array in model.parameters.items():
        array *= 3 if array.ndim > 1 and name != "wpe" else 1
    model.save_pretrained(tmp_path / "whole")
    LETTERS.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def rows_of(model):
    """The matrices in fewer bits, by name."""
    return {
        name: array if isinstance(array, FewerBits) else array.T
        for name, array in model.parameters.items()
        if isinstance(array, Weight)
    }


def same(a, b):
    assert a.parameters.nbytes == b.parameters.nbytes
    for name, rows in rows_of(a).items():
        other = rows_of(b)[name]
        np.testing.assert_array_equal(np.asarray(rows), np.asarray(other))
    np.testing.assert_array_equal(a(IDS), b(IDS))


def test_what_was_saved_is_mapped(whole, kind, tmp_path):
    model = formats.load_model(whole, dtype=kind)
    model.save_pretrained(tmp_path / "kept")
    loaded = formats.load_model(tmp_path / "kept", dtype=kind)
    same(loaded, model)
    for rows in rows_of(loaded).values():
        assert is_mapped(rows.data)
        assert rows.data.ctypes.data % 64 == 0
        assert all(is_mapped(vector) for vector in rows.vectors().values())
    for block in loaded.blocks:  # no copy is made of those that are one product
        for linear in block.linears:
            weight = linear.weight if isinstance(linear.weight, FewerBits) else linear.weight.T
            assert is_mapped(weight.data)
            for name in linear.weights:
                assert np.shares_memory(weight.data, rows_of(loaded)[name].data)
    loaded.save_pretrained(tmp_path / "kept")  # onto the file that is mapped
    same(formats.load_model(tmp_path / "kept", dtype=kind), model)
    read = formats.load_model(tmp_path / "kept", mmap=False, dtype=kind)
    assert not any(is_mapped(rows.data) for rows in rows_of(read).values())
    same(read, model)


def test_other_dtypes_are_made_of_what_was_saved(whole, kind, tmp_path):
    model = formats.load_model(whole, dtype=kind)
    model.save_pretrained(tmp_path / "kept")
    in_float32 = formats.load_model(tmp_path / "kept")
    for name, array in in_float32.parameters.items():
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, np.asarray(model.parameters[name]), name)
    in_float32.save_pretrained(tmp_path / "again")
    other = next(name for name in KINDS if name != kind)
    same(
        formats.load_model(tmp_path / "kept", dtype=other),
        formats.load_model(tmp_path / "again", dtype=other),
    )
    model.save_pretrained(tmp_path / "plain", "float32")  # for everybody
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    for name, array in formats.load_model(tmp_path / "plain").parameters.items():
        np.testing.assert_array_equal(array, in_float32.parameters[name])


def packed(rows):
    """(R, C) as oneDNN has them: (R / 64, C / 16v, 16, 64, v)."""
    shape = packed_shape(rows.shape, rows.itemsize)
    blocks, groups, inputs, outputs, together = shape
    filled = np.zeros((blocks * outputs, groups * inputs * together), rows.dtype)
    filled[: len(rows), : rows.shape[1]] = rows
    whole = filled.reshape(blocks, outputs, groups, inputs, together)
    return np.ascontiguousarray(whole.transpose(0, 2, 3, 1, 4))


def test_what_another_machine_has_packed_is_read(whole, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(KINDS[kind], "multiplier", classmethod(lambda cls: None))
    model = formats.load_model(whole, dtype=kind)
    model.save_pretrained(tmp_path / "kept")
    path = tmp_path / "kept/model.safetensors"
    arrays = {name: np.array(tensor.raw) for name, tensor in read_safetensors(path)[0].items()}
    code = {"bfloat16": np.uint16, "int8": np.int8}[kind]
    write_safetensors(path, {n: packed(a) if a.dtype == code else a for n, a in arrays.items()})
    same(formats.load_model(tmp_path / "kept", dtype=kind), model)
    in_float32 = formats.load_model(tmp_path / "kept")
    np.testing.assert_array_equal(in_float32(IDS).argmax(-1), model(IDS).argmax(-1))


@pytest.mark.parametrize("vocab_size", [61, 64])
def test_matrices_of_any_size(kind, tmp_path, vocab_size):
    """float32 begins at a multiple of four bytes in a file, whatever lies before it."""
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 5, "n_positions": 3, "vocab_size": vocab_size}
    GPT(GPTConfig(**sizes)).save_pretrained(tmp_path / "whole")
    model = formats.load_model(tmp_path / "whole", dtype=kind)
    model.save_pretrained(tmp_path / "kept")
    loaded = formats.load_model(tmp_path / "kept", dtype=kind)
    np.testing.assert_array_equal(loaded([[1, 2]]), model([[1, 2]]))


def test_the_command_line(whole, tmp_path, capsys):
    kept = str(tmp_path / "kept")
    assert cli.main(["convert", str(whole), kept, "--dtype", "int8"]) == 0
    assert "in int8, written to" in capsys.readouterr().err
    same(formats.load_model(kept, dtype="int8"), formats.load_model(whole, dtype="int8"))
    assert (tmp_path / "kept/model.safetensors").stat().st_size < 0.4 * (
        whole / "model.safetensors"
    ).stat().st_size
    assert cli.main(["info", kept, "--dtype", "int8"]) == 0
    assert "stored as   int8 9" in capsys.readouterr().out
