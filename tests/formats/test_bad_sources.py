"""What is refused of each source: one line that names the file and what is wrong in it, at once and
without taking the memory that a file's numbers claim."""

from __future__ import annotations

import json
import pickle
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from formats.gguf_writer import gguf_file, metadata_of, tensors_of
from formats.source_writers import (
    llmc_checkpoint,
    llmc_header,
    llmc_tokenizer,
    nanogpt_checkpoint,
    openai_arrays,
    save_torch,
    state_of,
    write_openai,
    write_pickled_directory,
)
from formats.tensorflow_writer import write_bundle
from models.references import small_model

import numgpt
from numgpt import Tokenizer
from numgpt.formats import load_model, open_model

MODEL = small_model("default")


def refusal(place, message, load=load_model, error=ValueError):
    """Every line of what a person would see, warnings included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracemalloc.start()
        began = time.perf_counter()
        try:
            with pytest.raises(error, match=message) as caught:
                load(place)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith(str(place))
    assert len(said.splitlines()) == 1
    assert len(said) < 500 + len(str(place))
    assert peak < 5_000_000
    assert time.perf_counter() - began < 2


# pytorch_model.bin

HUGE = 10**9
WEIGHTS = {
    "missing": (lambda s: s.pop("transformer.ln_f.bias"), r"lack 'transformer\.ln_f\.bias'"),
    "two missing": (
        lambda s: [s.pop(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")],
        r"lack 'transformer\.ln_f\.weight' and 1 more",
    ),
    "surplus": (lambda s: s.update(extra=np.zeros(2, np.float32)), "'extra' has no place"),
    "of two lines": (lambda s: s.update({"a\nb": np.zeros(2, np.float32)}), r"'a\\nb' has no"),
    "twice": (lambda s: s.update({"wpe.weight": np.zeros((24, 16), np.float32)}), "there twice"),
    "shape": (
        lambda s: s.update({"transformer.wpe.weight": np.zeros((16, 24), np.float32)}),
        r"wpe\.weight' has shape \[16, 24\], config\.json asks for \[24, 16\]",
    ),
    "not floats": (
        lambda s: s.update({"transformer.ln_f.bias": np.zeros(16, np.uint8)}),
        r"ln_f\.bias' is stored as U8",
    ),
    "nan": (
        lambda s: s.update({"transformer.ln_f.bias": np.full(16, np.nan, np.float32)}),
        r"ln_f\.bias' holds NaN or infinity",
    ),
    "infinity": (
        lambda s: s.update({"transformer.ln_f.bias": np.full(16, np.inf, np.float16)}),
        r"ln_f\.bias' holds NaN or infinity",
    ),
    "no tensor": (lambda s: s.update(version=3), r"'version' is no tensor.*a state_dict"),
    "no name": (lambda s: s.update({5: np.zeros(2, np.float32)}), "'5' is no tensor"),
}


@pytest.mark.parametrize(("damage", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_pytorch_model_bin(tmp_path, damage, message):
    path = write_pickled_directory(tmp_path, MODEL)
    state = state_of(MODEL)
    damage(state)
    save_torch(path, state)
    refusal(tmp_path, message)


@pytest.mark.parametrize("value", [3, [1, 2], "text", None, np.zeros(3, np.float32)])
def test_pytorch_model_bin_that_holds_something_else(tmp_path, value):
    save_torch(write_pickled_directory(tmp_path, MODEL), value)
    refusal(tmp_path, "pytorch_model.bin holds no state_dict, but a")


def test_values_beyond_float32(tmp_path):
    bias = b"\x7e" * 8 * 16  # as float64: 1e301
    tensors = [("output_norm.bias", "F64", (16,), bias)]
    path = tmp_path / "a.gguf"
    tensors += [tensor for tensor in tensors_of(MODEL) if tensor[0] != "output_norm.bias"]
    path.write_bytes(gguf_file(metadata_of(MODEL), tensors))
    refusal(path, r"'output_norm\.bias' holds NaN or infinity")


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_an_index_without_shards(tmp_path, index):
    write_pickled_directory(tmp_path, MODEL).unlink()
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    refusal(tmp_path, r"pytorch_model\.bin\.index\.json")


@pytest.mark.parametrize("shard", ["a\nb", "../a", "x" * 300, "a\0b", "", ".", 3, None])
def test_a_shard_that_is_not_there(tmp_path, shard):
    write_pickled_directory(tmp_path, MODEL).unlink()
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": shard}}))
    refusal(tmp_path, "names the shard")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": HUGE}, "n_layer=1000000000, the weights have 28 tensors"),
        ({"n_layer": 10**30}, "n_layer=10{30}"),
        ({"n_embd": HUGE}, r"wte\.weight' has shape \[37, 16\].*asks for \[37, 1000000000\]"),
        ({"vocab_size": 10**30}, r"wte\.weight' has shape"),
        ({"n_positions": HUGE}, r"wpe\.weight' has shape"),
        ({"n_inner": HUGE}, r"mlp\.c_fc\.weight' has shape"),
        ({"n_layer": 1}, r"h\.1\.ln_1\.weight' has no place"),
        ({"n_layer": 3}, r"lack 'transformer\.h\.2\.ln_1\.weight'"),
        ({"n_head": HUGE}, "n_head=1000000000"),
        ({"tie_word_embeddings": False}, r"lack 'lm_head\.weight'$"),
        ({"activation_function": "a\nb"}, r"activation_function='a\\nb'"),
        ({"model_type": "x\ny"}, r"model_type='x\\ny' is not supported"),
    ],
)
def test_absurd_sizes_in_a_config(tmp_path, fields, message):
    write_pickled_directory(tmp_path, MODEL)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    refusal(tmp_path, message)


# OpenAI's release


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    directory = tmp_path_factory.mktemp("release")
    return write_openai(directory, MODEL, Tokenizer.train("hen ten", 258))


HPARAMS = {
    "layers": ({"n_layer": HUGE}, r"hparams\.json says n_layer=1000000000"),
    "fewer layers": ({"n_layer": 1}, r"'model/h1/[\w/]+' has no place"),
    "more layers": ({"n_layer": 3}, r"lack 'model/h2/ln_1/g' and 11 more"),
    "text": ({"n_layer": "2"}, r"hparams\.json: n_layer='2'"),
    "null": ({"n_head": None}, r"hparams\.json: n_head=None"),
    "width": ({"n_embd": 1 << 40}, r"has shape .*, hparams\.json asks for"),
    "heads": ({"n_head": 5}, r"hparams\.json: n_embd=16 is not a multiple of n_head=5"),
    "vocabulary": ({"n_vocab": 38}, r"'model/wte' has shape \[37, 16\]"),
}


@pytest.mark.parametrize(("fields", "message"), HPARAMS.values(), ids=HPARAMS)
def test_hparams(release, fields, message):
    path = release / "hparams.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | fields))
        refusal(release, message)
        path.write_text("{}")
        refusal(release, r"hparams\.json lacks 'n_vocab'")
        path.write_text("[1")
        refusal(release, r"hparams\.json is not valid JSON")
    finally:
        path.write_text(before)


BUNDLES = {
    "missing": (lambda a: a.pop("model/h1/mlp/c_fc/b"), "lack 'model/h1/mlp/c_fc/b'"),
    "no gain": (lambda a: a.pop("model/ln_f/g"), "lack 'model/ln_f/g'"),
    "surplus": (lambda a: a.update({"model/h1/x/w": np.ones(3, "f4")}), "h1/x/w' has no place"),
    "unknown": (lambda a: a.update({"model/extra": np.ones(3, "f4")}), "extra' has no place"),
    "shape": (
        lambda a: a.update({"model/h0/mlp/c_fc/w": np.ones((16, 64), "f4")}),
        r"c_fc/w' has shape \[16, 64\], hparams\.json asks for \[1, 16, 64\]",
    ),
    "whole numbers": (lambda a: a.update({"model/wpe": np.ones((24, 16), "i4")}), "stored as I32"),
    "nan": (lambda a: a.update({"model/ln_f/b": np.full(16, np.nan, "f4")}), "ln_f/b' holds NaN"),
}


@pytest.mark.parametrize(("damage", "message"), BUNDLES.values(), ids=BUNDLES)
def test_openais_weights(release, tmp_path, damage, message):
    (tmp_path / "hparams.json").write_text((release / "hparams.json").read_text())
    arrays = openai_arrays(MODEL) | {"global_step": np.ones((), "i8")}
    write_bundle(tmp_path / "model.ckpt", [arrays | {"model/wte/Adam": arrays["model/wte"]}])
    load_model(tmp_path)  # what the optimizer left is no surplus
    damage(arrays)
    write_bundle(tmp_path / "model.ckpt", [arrays])
    refusal(tmp_path, message)


# nanoGPT

CHECKPOINTS = {
    "layers": (lambda c: c["model_args"].update(n_layer=HUGE), "ckpt.pt says n_layer=1000000000"),
    "no layers": (lambda c: c["model_args"].update(n_layer=0), "model_args: n_layer=0"),
    "text": (lambda c: c["model_args"].update(n_head="2"), "model_args: n_head='2'"),
    "none": (lambda c: c["model_args"].update(vocab_size=None), "model_args: vocab_size=None"),
    "tensor": (
        lambda c: c["model_args"].update(n_embd=np.ones(1, np.float32)),
        "model_args: n_embd=",
    ),
    "lacks": (lambda c: c["model_args"].pop("block_size"), "model_args lacks 'block_size'"),
    "width": (lambda c: c["model_args"].update(n_embd=1 << 60), r"wte\.weight' has shape"),
    "no args": (lambda c: c.pop("model_args"), "no checkpoint of nanoGPT"),
    "no model": (lambda c: c.pop("model"), "no checkpoint of nanoGPT"),
    "no state": (lambda c: c.update(model=3), "holds no state_dict, but a int"),
    "surplus": (
        lambda c: c["model"].update({"transformer.h.0.moe": np.ones(2, np.float32)}),
        r"'transformer\.h\.0\.moe' has no place in this model",
    ),
    "missing": (
        lambda c: c["model"].pop("transformer.h.1.mlp.c_fc.weight"),
        r"lack 'transformer\.h\.1\.mlp\.c_fc\.weight'",
    ),
    "a bias": (
        lambda c: c["model"].pop("transformer.ln_f.bias"),
        r"lack 'transformer\.ln_f\.bias'",
    ),
    "shape": (
        lambda c: c["model"].update(
            {"transformer.h.0.mlp.c_fc.weight": np.ones((16, 64), np.float32)}
        ),
        r"c_fc\.weight' has shape \[16, 64\], ckpt\.pt asks for \[64, 16\]",
    ),
}


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_nanogpts_checkpoint(tmp_path, damage, message):
    checkpoint = nanogpt_checkpoint(MODEL)
    damage(checkpoint)
    refusal(save_torch(tmp_path / "ckpt.pt", checkpoint), message)


@pytest.mark.parametrize(
    "meta",
    [
        3,
        {"stoi": {}},
        {"itos": ["a", "b"]},
        {"itos": {0: "a", 2: "b"}},
        {"itos": {"0": "a", "1": "b"}},
        {"itos": {0: "a", 1: "bc"}},
        {"itos": {0: "a", 1: "a"}},
        {"itos": {0: "a", 1: 5}},
        {"itos": {}},
    ],
)
def test_characters_that_are_none(tmp_path, meta):
    save_torch(tmp_path / "ckpt.pt", nanogpt_checkpoint(MODEL))
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta))
    refusal(tmp_path, f"{path.name}: .*(itos|ids|character)", numgpt.load)


# llm.c

SIZES = {"version": 3, "positions": 24, "vocabulary": 37, "layers": 2, "heads": 2, "width": 16}
SIZES |= {"padded": 48}
HEADERS = {
    "layers": ({"layers": (1 << 31) - 1}, "the sizes in its header make"),
    "negative": ({"layers": -1}, "the header says n_layer=-1"),
    "no width": ({"width": 0}, "the header says n_embd=0"),
    "width": ({"width": 1 << 30}, "the sizes in its header make"),
    "heads": ({"heads": 3}, "the header says n_embd=16 is not a multiple of n_head=3"),
    "padding": ({"padded": 36}, "vocabulary of 37 is padded to 36"),
    "more padding": ({"padded": (1 << 31) - 1}, "the sizes in its header make"),
    "version 1": ({"version": 1}, "version 1 of llm.c's format is not supported"),
    "version 5": ({"version": 5}, "the sizes in its header make"),
    "all": (dict.fromkeys(SIZES, (1 << 31) - 2) | {"version": 3}, "the sizes in its header make"),
}


@pytest.mark.parametrize(("fields", "message"), HEADERS.values(), ids=HEADERS)
def test_llmcs_header(tmp_path, fields, message):
    data = llmc_checkpoint(MODEL, padded=48)
    path = tmp_path / "model.bin"
    assert llmc_header(20240326, *SIZES.values()) == data[:1024]
    path.write_bytes(llmc_header(20240326, *(SIZES | fields).values()) + data[1024:])
    refusal(path, message)


@pytest.mark.parametrize("size", [4, 100, 1023, 1024, 5000, -1])
def test_llmcs_checkpoint_cut_short_or_longer(tmp_path, size):
    path, data = tmp_path / "model.bin", llmc_checkpoint(MODEL)
    path.write_bytes(data[:size])
    refusal(path, "ends within its header|the sizes in its header make")
    path.write_bytes(data + b"\0")
    refusal(path, "the sizes in its header make")


def test_llmcs_weights_that_are_not_finite(tmp_path):
    path, data = tmp_path / "model.bin", llmc_checkpoint(MODEL)
    path.write_bytes(data[:-4] + b"\0\0\x80\x7f")
    refusal(path, r"tensor 'transformer\.ln_f\.bias' holds NaN or infinity")


def test_llmcs_tokenizers(tmp_path):
    good = llmc_tokenizer(Tokenizer.train("hen ten", 258))
    path = tmp_path / "gpt2_tokenizer.bin"
    (tmp_path / "model.bin").write_bytes(llmc_checkpoint(MODEL))
    source, tokens = open_model(tmp_path), good[1024:]
    magic, version, count, end = np.frombuffer(good[:16], "<u4").tolist()
    first = tokens[:2]
    for data, message in [
        (good[:100], "ends within its header"),
        (good[:-1], f"ends within token {count - 1} of {count}"),
        (good[:1024], "ends within token 0"),
        (b"x" + good[1:], "is no tokenizer of llm.c"),
        (llmc_header(magic, 3, count, end) + tokens, "is no tokenizer of llm.c, version 1 or 2"),
        (llmc_header(magic, 2, 0, end), "is no tokenizer"),
        (llmc_header(magic, 2, -1, end), "is no tokenizer"),
        (llmc_header(magic, 2, (1 << 31) - 1, end) + tokens, f"token {count} of 2147483647"),
        (llmc_header(magic, 2, 1, 5) + tokens, "token 5"),
        (llmc_header(magic, version, count, count) + tokens, f"token {count}"),
        (llmc_header(magic, version, count, -1) + tokens, "token -1"),
        (llmc_header(magic, version, count, end) + first + tokens, "twice"),
        (good.replace(b"\1B", b"\1A"), "twice"),
        (good.replace(b"\1B", b"\0"), "empty"),
    ]:
        path.write_bytes(data)
        refusal(path, message, lambda _: source.read_tokenizer())
