"""Model directories: both ways with transformers, both styles of config.json, mapped memory,
shards, and what is refused."""

import json
import sys

import numpy as np
import pytest
from formats.gguf_writer import model_gguf
from models.references import (
    CONFIGS,
    EVERY_CONFIG,
    LLAMA3_SCALING,
    LLAMA_CONFIGS,
    LLAMA_SMALL,
    assert_same,
    batch,
    small_model,
    their_logits,
    to_transformers,
)
from support import assert_close

import numgpt
from numgpt import GPT, CharTokenizer, GPTConfig, Llama, LlamaConfig
from numgpt.formats import load_model, names, read_safetensors, write_safetensors


@pytest.fixture
def saved(tmp_path):
    """A directory with a small model."""
    small_model("default").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def llama(tmp_path):
    """… with a small Llama."""
    small_model("llama_grouped").save_pretrained(tmp_path)
    return tmp_path


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def change(directory, remove=(), **fields):
    changed = {name: v for name, v in config_of(directory).items() if name not in remove} | fields
    (directory / "config.json").write_text(json.dumps(changed))


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_save_then_load_is_the_identity(name, tmp_path):
    model = small_model(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert_same(loaded, model)
    if name in CONFIGS:
        assert loaded.config == model.config


dtypes = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


@pytest.mark.live("torch", "transformers")
@dtypes
@pytest.mark.parametrize(
    "name", ["default", "untied", "scaled_by_layer", "n_inner", *LLAMA_CONFIGS]
)
def test_transformers_loads_what_we_save(name, dtype, tmp_path):
    import torch
    import transformers

    model = small_model(name)
    model.save_pretrained(tmp_path, dtype)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    ids, _ = batch(model.config, (2, 9))
    expected = their_logits(theirs, ids)
    assert_close(load_model(tmp_path)(ids), expected)
    if dtype == "float32":
        assert_close(model(ids), expected)


LLAMAS = ["llama", "llama_scaled_rope", "llama_biases", "llama_qwen2", "llama_qwen3"]


@pytest.mark.live("torch", "transformers")
@dtypes
@pytest.mark.parametrize("shard", ["5GB", "5KB"])
@pytest.mark.parametrize("name", ["default", "untied", *LLAMAS])
def test_we_load_what_transformers_saves(name, shard, dtype, tmp_path):
    import torch

    model = small_model(name)
    theirs = to_transformers(model).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard == "5GB"
    if name in LLAMAS:  # as transformers 5 says it
        assert config_of(tmp_path)["rope_parameters"]["rope_theta"] == model.config.rope_theta
    loaded = load_model(tmp_path)
    assert loaded.parameters.flat.dtype == np.float32
    ids, _ = batch(model.config, (2, 9))
    # Read again: .to() has rounded the frequencies of theirs, too.
    theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(loaded(ids), their_logits(theirs, ids))


OLDER = {
    "default": (
        "transformer.",
        "wte.weight",
        {"h.0.attn.bias": np.ones((1, 1, 24, 24)), "h.1.attn.masked_bias": np.array(-1e4)},
    ),
    "llama_grouped": (
        "model.",
        "embed_tokens.weight",
        {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(2), "rotary_emb.inv_freq": np.ones(2)},
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_files_names_buffers_and_tied_heads_load(name, tmp_path):
    prefix, table, buffers = OLDER[name]
    model, path = small_model(name), tmp_path / "model.safetensors"
    model.save_pretrained(tmp_path)
    tensors, _ = read_safetensors(path)
    arrays = {name.removeprefix(prefix): np.array(t.raw) for name, t in tensors.items()}
    arrays |= {name: buffer.astype(np.float32) for name, buffer in buffers.items()}
    write_safetensors(path, arrays | {"lm_head.weight": arrays[table]})
    assert_same(load_model(tmp_path), model)


def test_names_what_is_missing(saved):
    for name in ("model.safetensors", "config.json"):
        (saved / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            GPT.from_pretrained(saved)


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


# config.json


OLD = {"rope_theta": 123.0, "rope_scaling": LLAMA3_SCALING}
NEW = {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 123.0}}
UNTYPED = {name: value for name, value in LLAMA3_SCALING.items() if name != "rope_type"}
UNNAMED = {"rope_theta": 123.0, "rope_scaling": UNTYPED | {"type": "llama3"}}


@pytest.mark.parametrize("fields", [OLD, NEW, UNNAMED], ids=["old", "new", "older"])
def test_both_styles_of_rope_are_read(llama, fields):
    change(llama, ["rope_theta", "rope_scaling"], **fields)
    config = load_model(llama).config
    assert config.rope_theta == 123.0
    assert config.rope_scaling["rope_type"] == "llama3"
    expected = LlamaConfig(
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
def test_plain_rotations_are_read(llama, fields):
    change(llama, ["rope_theta", "rope_scaling"], **fields)
    config = load_model(llama).config
    assert (config.rope_theta, config.rope_scaling) == (500.0, None)


def test_what_older_configs_leave_out_has_the_familys_defaults(llama):
    model = load_model(llama)
    absent = ["head_dim", "attention_bias", "mlp_bias", "rope_scaling", "rope_theta"]
    absent += ["attention_dropout", "initializer_range"]
    change(llama, absent, pretraining_tp=1, sliding_window=None, use_cache=True)
    loaded = load_model(llama)
    ids, _ = batch(model.config, (2, 9))
    np.testing.assert_array_equal(loaded(ids), model(ids))
    small_model("llama").save_pretrained(llama)  # as many key heads as heads
    change(llama, ["num_key_value_heads"])
    assert load_model(llama).config.kv_heads == 4


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


def test_a_model_of_the_other_family_is_refused_by_its_class(llama):
    with pytest.raises(ValueError, match="holds a Llama, not a GPT"):
        GPT.from_pretrained(llama)
    assert type(Llama.from_pretrained(llama)) is Llama
