"""numgpt convert: the same model in another directory, or nothing at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models.references import batch, small_model
from support import assert_close

import numgpt
from numgpt import CharTokenizer, Tokenizer
from numgpt.cli import convert as convert_module
from numgpt.files import LOCK_FILE, REMOVED, TEMPORARY

MODELS = ("default", "llama_grouped")
# Half a step of each dtype, relative to the value.
HALF_STEPS = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}


@pytest.fixture(params=MODELS)
def source(request, tmp_path):
    """A model in Hugging Face's layout."""
    directory = tmp_path / "source"
    small_model(request.param).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def tokenizer() -> CharTokenizer:
    return CharTokenizer([chr(48 + i) for i in range(37)])


@pytest.fixture
def convert(call):
    """Run the command -> status, stderr."""

    def convert(*arguments: object) -> tuple[int, str]:
        status, out, err = call("convert", *arguments)
        assert out == ""
        return status, err

    return convert


def content(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")}


@pytest.mark.parametrize("dtype", HALF_STEPS)
def test_each_dtype_holds_the_model_as_well_as_it_can(source, convert, tmp_path, dtype):
    before = content(source)
    status, err = convert(source, tmp_path / "a/new/one", "--dtype", dtype)
    assert status == 0, err
    assert f"in {dtype}, written to" in err
    assert content(source) == before
    ours, converted = (numgpt.load(path) for path in (source, tmp_path / "a/new/one"))
    assert type(converted[0]) is type(ours[0])
    assert converted[1].characters == ours[1].characters
    for name, array in ours[0].parameters.items():
        error = np.abs(converted[0].parameters[name] - array)
        # Below the smallest normal number of float16 the steps are all alike.
        assert (error <= HALF_STEPS[dtype] * np.maximum(np.abs(array), 2**-14)).all(), name
    ids, _ = batch(ours[0].config, (2, 9))
    logits, expected = converted[0](ids), ours[0](ids)
    if dtype == "float32":
        assert_close(logits, expected)
    else:
        largest = np.abs(expected).max()
        assert 0 < np.abs(logits - expected).max() < 16 * HALF_STEPS[dtype] * largest
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.live("torch", "transformers")
def test_pickled_weights_become_safe_ones(source, convert, tmp_path):
    import torch
    from safetensors.numpy import load_file

    state = {k: torch.tensor(v) for k, v in load_file(source / "model.safetensors").items()}
    torch.save(state, source / "pytorch_model.bin")
    expected = numgpt.load(source)[0]
    (source / "model.safetensors").unlink()
    assert convert(source, tmp_path / "new")[0] == 0
    assert not (tmp_path / "new/pytorch_model.bin").exists()
    shutil.rmtree(source)
    converted = numgpt.load(tmp_path / "new")[0]
    for name, array in expected.parameters.items():
        assert (converted.parameters[name] == array).all()


def test_a_chat_template_goes_along(convert, tmp_path):
    bpe = Tokenizer.train(["a b c\n" * 9], 259, special_tokens=["<s>"])
    bpe.chat_template = "<|im_start|>"
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 8, "vocab_size": 259}
    numgpt.GPT(numgpt.GPTConfig(**sizes)).save_pretrained(tmp_path / "source")
    bpe.save_pretrained(tmp_path / "source")
    assert convert(tmp_path / "source", tmp_path / "new")[0] == 0
    assert numgpt.Tokenizer.from_pretrained(tmp_path / "new").chat_template == "<|im_start|>"


def test_a_model_without_a_tokenizer_is_converted_and_that_is_noted(source, convert, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    status, err = convert(source, tmp_path / "new")
    assert status == 0
    assert "note: converted without a tokenizer" in err
    model = numgpt.GPT if "gpt2" in (source / "config.json").read_text() else numgpt.Llama
    model.from_pretrained(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "vocab.bpe", "x.txt"])
def test_a_directory_with_anything_in_it_is_left_alone(source, convert, tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_text("mine")
    before = content(tmp_path)
    status, err = convert(source, tmp_path / "there")
    assert status == 2
    assert err == (
        f"numgpt: error: {tmp_path / 'there'} is there already, and not empty ('{name}'):"
        " name a new directory\n"
    )
    assert content(tmp_path) == before


def test_a_model_is_not_converted_onto_itself(source, convert, monkeypatch):
    before = content(source)
    monkeypatch.chdir(source)
    for target in (source, source / "../source", "."):
        status, err = convert(source, target)
        assert status == 2
        assert "not empty" in err
    status, err = convert(source, source / "config.json")
    assert (status, err.count("\n")) == (2, 1)
    assert "config.json is a file: name a directory" in err
    assert content(source) == before


@pytest.mark.parametrize("there", ["nothing", "an empty directory"])
def test_an_empty_directory_is_as_good_as_none(source, convert, tmp_path, there):
    if there != "nothing":
        (tmp_path / "new").mkdir()
    assert convert(source, tmp_path / "new")[0] == 0
    assert numgpt.load(tmp_path / "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./absent", "NEW"), "./absent"),
        (("EMPTY", "NEW"), "no model in"),
        (("SOURCE/tokenizer.json", "NEW"), "is no model by itself: name its directory"),
        (("SOURCE", "NEW", "--dtype", "int4"), "int4"),
        (("SOURCE",), "DST"),
        ((), "SRC"),
    ],
)
def test_what_can_not_be_converted_leaves_nothing(source, convert, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"SOURCE": str(source), "NEW": str(tmp_path / "new"), "EMPTY": str(tmp_path / "empty")}
    named = []
    for argument in arguments:
        for place, path in places.items():
            argument = argument.replace(place, path)
        named.append(argument)
    status, err = convert(*named)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_damaged_weights_leave_nothing(source, convert, tmp_path):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    status, err = convert(source, tmp_path / "new")
    assert (status, err.count("\n")) == (2, 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("when", ["first tensor", "last tensor", "after the weights"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_what_is_broken_off_leaves_nothing(source, convert, tmp_path, monkeypatch, when, error):
    """Ctrl-C or a full disk, wherever they come."""
    before = content(source)
    progress = convert_module._progress

    def failing(what, total):
        report, calls = progress(what, total), []
        last = {"first tensor": 1, "last tensor": total}.get(when)

        def report_or_fail(name):
            calls.append(name)
            if what == "writing" and len(calls) == last:
                raise error
            report(name)

        return report_or_fail

    monkeypatch.setattr(convert_module, "_progress", failing)
    if when == "after the weights":
        from numgpt.formats import huggingface

        def full(path, fields):
            assert path.name == "config.json"
            raise error

        monkeypatch.setattr(huggingface, "write_json", full)
    status, _ = convert(source, tmp_path / "new")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert not (tmp_path / "new").exists()
    assert content(source) == before
    monkeypatch.undo()
    assert convert(source, tmp_path / "new")[0] == 0  # nothing is in its way


def test_all_files_appear_at_once(source, convert, tmp_path, monkeypatch):
    """A kill leaves no clean-up, only what has been written: until the end nothing in its place."""
    rename, seen = os.rename, []

    def looking(old, new):
        if Path(new).parent == tmp_path / "new":
            there = sorted(path.name for path in (tmp_path / "new").iterdir())
            assert there == sorted([LOCK_FILE, Path(old).name])
            seen.append({path.name for path in Path(old).iterdir()} - {REMOVED})
        return rename(old, new)

    monkeypatch.setattr(os, "rename", looking)
    assert convert(source, tmp_path / "new")[0] == 0
    saved = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert seen == [saved]
    assert {path.name for path in (tmp_path / "new").iterdir()} == saved
    assert json.loads((tmp_path / "new/config.json").read_text())["dtype"] == "float32"


def test_what_a_killed_conversion_left_is_no_hindrance(source, convert, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / f".abc.{dead.pid}{TEMPORARY}").mkdir()
    assert convert(source, tmp_path / "new")[0] == 0
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".")]


def test_what_comes_meanwhile_is_not_replaced(source, convert, tmp_path, monkeypatch):
    read = convert_module.read_model

    def slowly(*arguments, **options):
        (tmp_path / "new" / "config.json").write_text("precious")
        return read(*arguments, **options)

    monkeypatch.setattr(convert_module, "read_model", slowly)
    status, err = convert(source, tmp_path / "new")
    assert status == 2
    assert "not empty ('config.json')" in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
    assert (tmp_path / "new" / "config.json").read_text() == "precious"


def test_gguf_is_one_file(convert, tmp_path):
    path = tmp_path / "model.gguf"
    status, err = convert("shakespeare", path, "--gguf", "BF16")
    assert status == 0, err
    assert f"MB in BF16, written to {path} in " in err
    (model, tokenizer), (original, _) = numgpt.load(path), numgpt.load("shakespeare")
    ids, greedy = tokenizer.encode("To be"), {"max_new_tokens": 5, "do_sample": False}
    np.testing.assert_array_equal(model.generate(ids, **greedy), original.generate(ids, **greedy))
    content = path.read_bytes()
    status, err = convert("shakespeare", path, "--gguf", "F16")
    assert (status, "is there already: name a new file" in err) == (2, True)
    assert path.read_bytes() == content
    status, err = convert("shakespeare", tmp_path / "b.gguf", "--gguf", "F16", "--dtype", "float16")
    assert (status, "--dtype cannot be combined with --gguf" in err) == (2, True)
    status, err = convert("shakespeare", tmp_path / "absent/b.gguf", "--gguf", "F16")
    assert (status, "absent/b.gguf" in err) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
