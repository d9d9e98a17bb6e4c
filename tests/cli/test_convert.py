"""numgpt convert: the same model in another directory, or nothing at all."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from models.references import batch, small_model
from support import assert_close, python

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
    directory = tmp_path / "SOURCE"
    small_model(request.param).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def tokenizer() -> CharTokenizer:
    return CharTokenizer([chr(48 + i) for i in range(37)])


@pytest.fixture
def convert(works):
    """Run the command -> stderr."""

    def convert(*arguments: object) -> str:
        out, err = works("convert", *arguments)
        assert out == ""
        return err

    return convert


def content(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")}


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("dtype", HALF_STEPS)
def test_each_dtype_holds_the_model_as_well_as_it_can(source, convert, tmp_path, dtype):
    before = content(source)
    assert f"in {dtype}, written to" in convert(source, tmp_path / "a/new/one", "--dtype", dtype)
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
    convert(source, tmp_path / "new")
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
    convert(tmp_path / "source", tmp_path / "new")
    assert numgpt.Tokenizer.from_pretrained(tmp_path / "new").chat_template == "<|im_start|>"


def test_a_model_without_a_tokenizer_is_converted_and_that_is_noted(source, convert, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    assert "note: converted without a tokenizer" in convert(source, tmp_path / "new")
    model = numgpt.GPT if "gpt2" in (source / "config.json").read_text() else numgpt.Llama
    model.from_pretrained(tmp_path / "new")
    assert names(tmp_path / "new") == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "vocab.bpe", "x.txt"])
def test_a_directory_with_anything_in_it_is_left_alone(source, refuses, tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_text("mine")
    before = content(tmp_path)
    assert refuses("convert", source, tmp_path / "there") == (
        f"numgpt: error: {tmp_path / 'there'} is there already, and not empty ('{name}'):"
        " name a new directory\n"
    )
    assert content(tmp_path) == before


def test_a_model_is_not_converted_onto_itself(source, refuses, monkeypatch):
    before = content(source)
    monkeypatch.chdir(source)
    for target in (source, source / "../SOURCE", "."):
        assert "not empty" in refuses("convert", source, target)
    err = refuses("convert", source, source / "config.json")
    assert "config.json is a file: name a directory" in err
    assert content(source) == before


@pytest.mark.parametrize("there", ["nothing", "an empty directory"])
def test_an_empty_directory_is_as_good_as_none(source, convert, tmp_path, there):
    if there != "nothing":
        (tmp_path / "new").mkdir()
    convert(source, tmp_path / "new")
    assert numgpt.load(tmp_path / "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("./absent", "NEW"), "./absent"),
        (("EMPTY", "NEW"), "no model in"),
        (("SOURCE/tokenizer.json", "NEW"), "is no model by itself: name its directory"),
        (("SOURCE", "NEW", "--dtype", "int4"), "int4"),
        (("DAMAGED", "NEW"), "its tensors end at"),
        (("SOURCE",), "DST"),
        ((), "SRC"),
    ],
)
def test_what_can_not_be_converted_leaves_nothing(source, refuses, tmp_path, arguments, message):
    (tmp_path / "EMPTY").mkdir()
    weights = shutil.copytree(source, tmp_path / "DAMAGED") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    named = [re.sub("^[A-Z]+", f"{tmp_path}/\\g<0>", argument) for argument in arguments]
    assert message in refuses("convert", *named)
    assert not (tmp_path / "NEW").exists()


@pytest.mark.parametrize("when", ["first tensor", "last tensor", "after the weights"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_what_is_broken_off_leaves_nothing(
    source, call, convert, tmp_path, monkeypatch, when, error
):
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
    status, _, _ = call("convert", source, tmp_path / "new")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert not (tmp_path / "new").exists()
    assert content(source) == before
    monkeypatch.undo()
    convert(source, tmp_path / "new")  # nothing is in its way


def test_all_files_appear_at_once(source, convert, tmp_path, monkeypatch):
    """A kill leaves no clean-up, only what has been written: until the end nothing in its place."""
    rename, seen = os.rename, []

    def looking(old, new):
        if Path(new).parent == tmp_path / "new":
            assert names(tmp_path / "new") == {LOCK_FILE, Path(old).name}
            seen.append(names(Path(old)) - {REMOVED})
        return rename(old, new)

    monkeypatch.setattr(os, "rename", looking)
    convert(source, tmp_path / "new")
    saved = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert seen == [saved]
    assert names(tmp_path / "new") == saved
    assert json.loads((tmp_path / "new/config.json").read_text())["dtype"] == "float32"


def test_what_a_killed_conversion_left_is_no_hindrance(source, convert, tmp_path):
    ended = python("import os; print(os.getpid())")
    (tmp_path / "new" / f".abc.{ended}{TEMPORARY}").mkdir(parents=True)
    convert(source, tmp_path / "new")
    assert not [name for name in names(tmp_path / "new") if name.startswith(".")]


def test_what_comes_meanwhile_is_not_replaced(source, refuses, tmp_path, monkeypatch):
    read = convert_module.read_model

    def slowly(*arguments, **options):
        (tmp_path / "new" / "config.json").write_text("precious")
        return read(*arguments, **options)

    monkeypatch.setattr(convert_module, "read_model", slowly)
    assert "not empty ('config.json')" in refuses("convert", source, tmp_path / "new")
    assert names(tmp_path / "new") == {"config.json"}
    assert (tmp_path / "new" / "config.json").read_text() == "precious"


def test_gguf_is_one_file(convert, refuses, tmp_path):
    path = tmp_path / "model.gguf"
    err = convert("shakespeare", path, "--gguf", "BF16")
    assert f"MB in BF16, written to {path} in " in err
    (model, tokenizer), (original, _) = numgpt.load(path), numgpt.load("shakespeare")
    ids, greedy = tokenizer.encode("To be"), {"max_new_tokens": 5, "do_sample": False}
    np.testing.assert_array_equal(model.generate(ids, **greedy), original.generate(ids, **greedy))
    content = path.read_bytes()
    for name, flags, message in (
        ("model.gguf", (), "is there already: name a new file"),
        ("b.gguf", ("--dtype", "float16"), "--dtype cannot be combined with --gguf"),
        ("absent/b.gguf", (), "absent/b.gguf"),
    ):
        given = ("shakespeare", tmp_path / name, "--gguf", "F16", *flags)
        assert message in refuses("convert", *given)
    assert path.read_bytes() == content
    assert names(tmp_path) == {"model.gguf"}
