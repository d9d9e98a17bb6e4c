"""Model directories: both ways with transformers, mapped memory, shards, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from formats.gguf_writer import model_gguf
from models.references import CONFIGS, batch, small_model, to_transformers
from support import assert_close

import numgpt
from numgpt import GPT, CharTokenizer, GPTConfig
from numgpt.formats import load_model, names, read_safetensors, write_safetensors


@pytest.fixture
def saved(tmp_path):
    """A directory with a small model."""
    small_model("default").save_pretrained(tmp_path)
    return tmp_path


def stored(directory):
    tensors, _ = read_safetensors(directory / "model.safetensors")
    return {name: np.array(tensor.raw) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_save_then_load_is_the_identity(name, tmp_path):
    model = small_model(name)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for key, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[key], array)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["default", "untied", "scaled_by_layer", "n_inner"])
def test_transformers_loads_what_we_save(name, dtype, tmp_path):
    import torch
    import transformers

    model = small_model(name)
    model.save_pretrained(tmp_path, dtype)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids, _ = batch(model.config, (2, 9))
    assert_close(
        GPT.from_pretrained(tmp_path)(ids), theirs(torch.tensor(ids)).logits.detach().numpy()
    )


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("name", ["default", "untied"])
def test_we_load_what_transformers_saves(name, shard, dtype, tmp_path):
    import torch

    model = small_model(name)
    theirs = to_transformers(model).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "5GB"
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.parameters.flat.dtype == np.float32
    ids, _ = batch(model.config, (2, 9))
    assert_close(loaded(ids), theirs.float().eval()(torch.tensor(ids)).logits.detach().numpy())


def test_float32_stays_mapped_and_the_file_unchanged(saved):
    before = (saved / "model.safetensors").read_bytes()
    model = GPT.from_pretrained(saved)
    assert isinstance(model.parameters.flat.base, np.memmap)
    optimizer = numgpt.AdamW(model)
    model.loss_and_grads([1, 2], [2, 3])
    optimizer.step()
    assert (saved / "model.safetensors").read_bytes() == before
    model.save_pretrained(saved)  # onto the file that is mapped
    np.testing.assert_array_equal(GPT.from_pretrained(saved).parameters.flat, model.parameters.flat)


def test_older_files_names_and_buffers_load(saved):
    expected = GPT.from_pretrained(saved)
    arrays = {name.removeprefix("transformer."): array for name, array in stored(saved).items()}
    arrays["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
    arrays["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    arrays["lm_head.weight"] = arrays["wte.weight"]
    write_safetensors(saved / "model.safetensors", arrays)
    loaded = GPT.from_pretrained(saved)
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array)


def test_names_what_is_missing(saved, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        GPT.from_pretrained(empty)
    shutil.copy(saved / "config.json", empty)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        GPT.from_pretrained(empty)
    (empty / "model.safetensors.index.json").write_text(
        '{"weight_map": {"wte.weight": "a.safetensors"}}'
    )
    with pytest.raises(ValueError, match=r"shard 'a\.safetensors'"):
        GPT.from_pretrained(empty)


def test_load_gives_both(saved):
    CharTokenizer([chr(200 + i) for i in range(37)]).save_pretrained(saved)
    model, tokenizer = numgpt.load(saved)
    assert model(tokenizer.encode("ÈÉ")).shape == (1, 2, 37)


def test_a_name_without_files_says_what_to_do(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no file or directory \./absent"):
        numgpt.load("./absent")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if not installed
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        GPT.from_pretrained("gpt2")


@pytest.mark.live("huggingface_hub")
def test_offline_the_hubs_failure_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub as hub

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(names.HubError, match=r"'gpt2-none'.*into a directory") as error:
        GPT.from_pretrained("gpt2-none")
    assert "\n" not in str(error.value)


def test_shipped_names_resolve_without_the_hub(tmp_path, monkeypatch):
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5)).save_pretrained(
        tmp_path / "tiny"
    )
    monkeypatch.setattr(names, "WEIGHTS", (tmp_path,))
    assert GPT.from_pretrained("tiny").config.n_embd == 4


def test_what_ends_a_text_can_be_said_for_generation_only(saved):
    path = saved / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [3, 5], "temperature": 0.6}))
    assert GPT.from_pretrained(saved).config.eos_token_id == [3, 5]
    path.write_text(json.dumps({"do_sample": True}))
    assert GPT.from_pretrained(saved).config.eos_token_id is None


def test_a_config_beside_a_gguf_file_is_not_in_its_way(tmp_path):
    model = small_model("llama_grouped")
    (tmp_path / "model.gguf").write_bytes(model_gguf(model))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smollm"}))
    loaded = load_model(tmp_path)
    np.testing.assert_array_equal(loaded.parameters["norm.weight"], model.parameters["norm.weight"])


def test_weights_that_are_no_numbers_replace_nothing(tmp_path):
    model = small_model("default")
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    next(iter(model.parameters.values())).flat[3] = np.nan
    with pytest.raises(ValueError, match="holds NaN or infinity: such weights are not saved"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match='directory="": name a directory'):
        model.save_pretrained("")
