"""Llama in Hugging Face's layout: save, load, transformers, both styles of config.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models.references import (
    LLAMA3_SCALING,
    LLAMA_CONFIGS,
    LLAMA_SMALL,
    batch,
    small_model,
    to_transformers,
)
from support import assert_close

import numgpt
from numgpt import Llama, LlamaConfig
from numgpt.formats import load_model, read_safetensors, write_safetensors

every_config = pytest.mark.parametrize("name", LLAMA_CONFIGS)


def logits_of_theirs(theirs, ids):
    import torch

    with torch.no_grad():
        return theirs.float().eval()(torch.tensor(ids)).logits.numpy()


@pytest.fixture
def saved(tmp_path):
    """A directory with a small model."""
    small_model("llama_grouped").save_pretrained(tmp_path)
    return tmp_path


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def change(directory, remove=(), **fields):
    changed = {name: v for name, v in config_of(directory).items() if name not in remove} | fields
    (directory / "config.json").write_text(json.dumps(changed))


@every_config
def test_save_then_load_gives_the_same_logits(tmp_path, name):
    model = small_model(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is Llama
    ids, _ = batch(model.config, (2, 9))
    assert_close(loaded(ids), model(ids))
    for key, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[key], array, err_msg=key)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_config
def test_transformers_loads_what_we_save(tmp_path, name, dtype):
    import torch
    import transformers

    model = small_model(name)
    model.save_pretrained(tmp_path, dtype)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    ids, _ = batch(model.config, (2, 9))
    expected = logits_of_theirs(theirs, ids)
    assert_close(load_model(tmp_path)(ids), expected)
    if dtype == "float32":
        assert_close(model(ids), expected)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize(
    "name", ["llama", "llama_scaled_rope", "llama_biases", "llama_qwen2", "llama_qwen3"]
)
def test_we_load_what_transformers_saves(tmp_path, name, shard, dtype):
    """Its config.json says rope_parameters, as transformers 5 does."""
    import torch

    model = small_model(name)
    theirs = to_transformers(model).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "5GB"
    assert config_of(tmp_path)["rope_parameters"]["rope_theta"] == model.config.rope_theta
    ids, _ = batch(model.config, (2, 9))
    # Read again: .to() has rounded the frequencies of theirs, too.
    theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(load_model(tmp_path)(ids), logits_of_theirs(theirs, ids))


# config.json


OLD = {"rope_theta": 123.0, "rope_scaling": LLAMA3_SCALING}
NEW = {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 123.0}}
UNTYPED = {name: value for name, value in LLAMA3_SCALING.items() if name != "rope_type"}
OLDER = {"rope_theta": 123.0, "rope_scaling": UNTYPED | {"type": "llama3"}}


@pytest.mark.parametrize("fields", [OLD, NEW, OLDER], ids=["old", "new", "older"])
def test_both_styles_of_rope_are_read(saved, fields):
    change(saved, ["rope_theta", "rope_scaling"], **fields)
    config = load_model(saved).config
    assert config.rope_theta == 123.0
    assert config.rope_scaling["rope_type"] == "llama3"
    expected = numgpt.LlamaConfig(
        hidden_size=16, num_attention_heads=4, rope_theta=123.0, rope_scaling=LLAMA3_SCALING
    )
    np.testing.assert_array_equal(config.frequencies(), expected.frequencies())


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "default"}},
        {"rope_theta": 500.0, "rope_scaling": None},
        {"rope_theta": 500.0},
        {"rope_theta": 500},
        {"rope_theta": 500.0, "rope_parameters": None},
        {"rope_parameters": {"rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {}},
    ],
)
def test_plain_rotations_are_read(saved, fields):
    change(saved, ["rope_theta", "rope_scaling"], **fields)
    config = load_model(saved).config
    assert (config.rope_theta, config.rope_scaling) == (500.0, None)


def test_what_older_configs_leave_out_has_the_familys_defaults(saved):
    model = load_model(saved)
    absent = ["head_dim", "attention_bias", "mlp_bias", "rope_scaling", "rope_theta"]
    absent += ["attention_dropout", "initializer_range"]
    change(saved, absent, pretraining_tp=1, sliding_window=None, use_cache=True)
    loaded = load_model(saved)
    ids, _ = batch(model.config, (2, 9))
    np.testing.assert_array_equal(loaded(ids), model(ids))
    small_model("llama").save_pretrained(saved)  # as many key heads as heads
    change(saved, ["num_key_value_heads"])
    assert load_model(saved).config.kv_heads == 4


def test_a_qwen3s_heads_have_a_size_of_their_own(tmp_path):
    """Where its config does not say one, transformers takes 128."""
    fields = LLAMA_SMALL | {"model_type": "qwen3", "head_dim": 128, "attention_bias": True}
    model = Llama(LlamaConfig(**fields), seed=1)
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)["architectures"] == ["Qwen3ForCausalLM"]
    change(tmp_path, ["head_dim"], layer_types=["full_attention"] * 2)
    loaded = load_model(tmp_path)
    assert loaded.config.head_size == 128
    assert loaded.parameters["layers.1.self_attn.k_norm.weight"].shape == (128,)
    np.testing.assert_array_equal(loaded([1, 2, 3]), model([1, 2, 3]))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_biases_that_the_files_could_not_say_are_not_saved(model_type, tmp_path):
    model = Llama(LlamaConfig(**LLAMA_SMALL, model_type=model_type, mlp_bias=True), seed=1)
    with pytest.raises(ValueError, match=f"model_type='{model_type}' with this combination of b"):
        model.save_pretrained(tmp_path)


def test_names_without_prefix_frequencies_and_a_tied_head_load(saved):
    expected = load_model(saved)
    tensors, _ = read_safetensors(saved / "model.safetensors")
    arrays = {name.removeprefix("model."): np.array(t.raw) for name, t in tensors.items()}
    arrays["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    arrays["rotary_emb.inv_freq"] = np.ones(2, np.float32)
    arrays["lm_head.weight"] = arrays["embed_tokens.weight"]
    write_safetensors(saved / "model.safetensors", arrays)
    loaded = load_model(saved)
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array)


def test_a_model_of_the_other_family_is_refused_by_its_class(saved):
    with pytest.raises(ValueError, match="holds a Llama, not a GPT"):
        numgpt.GPT.from_pretrained(saved)
    assert type(Llama.from_pretrained(saved)) is Llama
