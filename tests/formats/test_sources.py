"""Models as other projects release them: the same parameters and tokens as were written."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from formats.gguf_writer import model_gguf
from formats.source_writers import (
    llmc_checkpoint,
    llmc_tokenizer,
    nanogpt_checkpoint,
    save_torch,
    state_of,
    write_openai,
    write_pickled_directory,
)
from formats.test_pytorch import assert_as_saved, write_archive, write_legacy
from models.references import EVERY_CONFIG, assert_same, batch, small_model, to_transformers
from support import assert_close, shared

import numgpt
from numgpt import GPT, CharTokenizer, Tokenizer
from numgpt.formats import load_model, load_tokenizer
from numgpt.formats.pytorch import read_pytorch

TEXT = "Once upon a time a hen ran in the sun.\n\nOnce more it's 1234567 o'clock, naïve café! " * 3
both_formats = pytest.mark.parametrize("write", [write_archive, write_legacy])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 330)


def model_of(name, **fields):
    return GPT(dataclasses.replace(small_model(name).config, **fields), seed=7)


def assert_same_tokens(read, tokenizer):
    for field in ("vocabulary", "merges", "special_tokens", "eos_token"):
        assert getattr(read, field) == getattr(tokenizer, field), field
    text = TEXT + "Ünseen words<|endoftext|>"
    assert read.encode(text, "all") == tokenizer.encode(text, "all")


# pytorch_model.bin


@both_formats
@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_pytorch_model_bin(tmp_path, name, write):
    model = small_model(name)
    path = write_pickled_directory(tmp_path, model, write=write)
    for place in (tmp_path, path):
        assert_same(load_model(place), model)


@both_formats
def test_pytorch_model_bin_in_shards_and_half_precision(tmp_path, write):
    model = small_model("default")
    model.parameters.flat[:] = model.parameters.flat.astype(np.float16)
    write_pickled_directory(tmp_path, model).unlink()
    state = list(state_of(model, np.float16).items())
    shards = {f"pytorch_model-0000{n}-of-00003.bin": dict(state[n::3]) for n in range(3)}
    for shard, arrays in shards.items():
        save_torch(
            tmp_path / shard, arrays, write, **({"dtype": "F16"} if write is write_legacy else {})
        )
    weight_map = {name: shard for shard, arrays in shards.items() for name in arrays}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    for place in (tmp_path, tmp_path / shard):
        assert_same(load_model(place), model)
    (tmp_path / shard).unlink()
    with pytest.raises(ValueError, match=f"names the shard '{shard}', which is not there"):
        load_model(tmp_path)


def test_the_file_that_is_named_is_the_one_that_is_read(tmp_path):
    first, second = model_of("default"), small_model("default")
    first.save_pretrained(tmp_path)
    path = write_pickled_directory(tmp_path, second)
    assert_same(load_model(tmp_path), first)  # safetensors come first
    assert_same(load_model(tmp_path / "model.safetensors"), first)
    assert_same(load_model(path), second)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "best.safetensors")
    path.rename(tmp_path / "model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same(load_model(tmp_path / "best.safetensors"), first)
    assert_same(load_model(tmp_path / "model.bin"), second)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", ["default", "untied", "llama_grouped"])
def test_pytorch_model_bin_of_transformers(tmp_path, name, archive):
    import torch

    model = small_model(name)
    theirs = to_transformers(model)
    theirs.config.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=archive)
    assert_same(load_model(tmp_path), model)


# OpenAI's release


@pytest.mark.parametrize("shards", [1, 3])
def test_openais_release(tmp_path, tokenizer, shards):
    model = model_of("odd", vocab_size=tokenizer.vocab_size)
    write_openai(tmp_path, model, tokenizer, shards)
    for place in (tmp_path, tmp_path / "model.ckpt.index"):
        loaded, read = numgpt.load(place)
        assert_same(loaded, model)
        assert_same_tokens(read, tokenizer)
    assert_same_tokens(load_tokenizer(tmp_path), tokenizer)


# nanoGPT


@both_formats
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("biases", [True, False])
def test_nanogpts_checkpoint(tmp_path, write, prefix, biases):
    model = small_model("gelu")
    if not biases:
        for name, array in model.parameters.items():
            array *= not name.endswith(".bias")
    saved = nanogpt_checkpoint(model, prefix, biases)
    saved["optimizer"] = {"state": {0: {"exp_avg": np.ones((2, 3), np.float32)}}}
    mask = np.tri(24, dtype=np.float32)[None, None]  # which older ones hold
    saved["model"] |= {f"{prefix}transformer.h.{n}.attn.bias": mask for n in range(2)}
    path = save_torch(tmp_path / "ckpt.pt", saved, write)
    for place in (tmp_path, path):
        loaded = load_model(place)
        assert_same(loaded, model)
        assert loaded.config.activation_function == "gelu"


def test_nanogpts_characters_and_tokens(tmp_path, tokenizer):
    model = small_model("gelu")
    path = save_torch(tmp_path / "ckpt.pt", nanogpt_checkpoint(model))
    with pytest.raises(FileNotFoundError, match=r"tokenizer.*meta\.pkl"):
        numgpt.load(tmp_path)
    characters = [chr(0xC0 + id) for id in range(37)]
    meta = {"vocab_size": 37, "itos": dict(enumerate(characters))}
    meta["stoi"] = {character: id for id, character in meta["itos"].items()}
    for protocol in (2, 3, 4, 5):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
        for place in (tmp_path, path):
            loaded, read = numgpt.load(place)
            assert isinstance(read, CharTokenizer)
            assert read.characters == characters
            assert_same(loaded, model)
        assert load_tokenizer(tmp_path).characters == characters
    (tmp_path / "meta.pkl").unlink()
    save_torch(path, nanogpt_checkpoint(model_of("gelu", vocab_size=tokenizer.vocab_size)))
    tokenizer.save_pretrained(tmp_path)
    assert_same_tokens(numgpt.load(path)[1], tokenizer)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_nanogpts_own_model(tmp_path, bias, archive):
    import torch
    from torch import nn
    from torch.nn import functional

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16))
            self.bias = nn.Parameter(torch.randn(16)) if bias else None

        def forward(self, x):
            return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = nn.Linear(16, 48, bias=bias)
            self.c_proj = nn.Linear(16, 16, bias=bias)

        def forward(self, x):
            batch, time, width = x.size()
            q, k, v = self.c_attn(x).split(width, dim=2)
            q, k, v = (a.view(batch, time, 2, 8).transpose(1, 2) for a in (q, k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).contiguous().view(batch, time, width))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc = nn.Linear(16, 64, bias=bias)
            self.c_proj = nn.Linear(64, 16, bias=bias)

        def forward(self, x):
            return self.c_proj(functional.gelu(self.c_fc(x)))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn, self.ln_2, self.mlp = Norm(), Attention(), Norm(), MLP()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class NanoGPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(37, 16),
                    "wpe": nn.Embedding(24, 16),
                    "h": nn.ModuleList([Block(), Block()]),
                    "ln_f": Norm(),
                }
            )
            self.lm_head = nn.Linear(16, 37, bias=False)
            self.transformer.wte.weight = self.lm_head.weight

        def forward(self, ids):
            parts = self.transformer
            x = parts.wte(ids) + parts.wpe(torch.arange(ids.size(1)))
            for block in parts.h:
                x = block(x)
            return self.lm_head(parts.ln_f(x))

    torch.manual_seed(0)
    theirs = NanoGPT()
    optimizer = torch.optim.AdamW(theirs.parameters())
    ids, _ = batch(small_model("gelu").config, (2, 9))
    theirs(torch.tensor(ids)).square().mean().backward()
    optimizer.step()
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "vocab_size": 37}
    checkpoint = {
        "model": theirs.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": sizes | {"bias": bias, "dropout": 0.0},
        "best_val_loss": torch.tensor(1.5),
    }
    path = tmp_path / "ckpt.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=archive)
    read = read_pytorch(path)
    assert_as_saved(read, checkpoint, torch)
    head, table = read["model"]["lm_head.weight"], read["model"]["transformer.wte.weight"]
    assert (table.name, table.offset) == ("model.transformer.wte.weight", head.offset)
    expected = theirs(torch.tensor(ids)).detach().numpy()
    assert_close(load_model(tmp_path)(ids), expected)


# llm.c


@pytest.mark.parametrize("padded", [None, 48])
@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("name", ["default", "odd", "one_head"])
def test_llmcs_checkpoint(tmp_path, name, version, padded):
    model = small_model(name)
    if version == 5:
        model.parameters.flat.view(np.uint32)[:] &= 0xFFFF0000
    path = tmp_path / "model.bin"
    path.write_bytes(llmc_checkpoint(model, version, padded))
    for place in (tmp_path, path):
        assert_same(load_model(place), model)


@pytest.mark.parametrize("version", [1, 2])
def test_llmcs_tokenizer_tells_its_merges(tmp_path, tokenizer, version):
    assert tokenizer.eos_token_id == tokenizer.vocab_size - 1
    model = model_of("default", vocab_size=tokenizer.vocab_size)
    (tmp_path / "model.bin").write_bytes(llmc_checkpoint(model))
    with pytest.raises(FileNotFoundError, match=r"gpt2_tokenizer\.bin"):
        numgpt.load(tmp_path)
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(llmc_tokenizer(tokenizer, version))
    loaded, read = numgpt.load(tmp_path)
    assert_same(loaded, model)
    assert_same_tokens(read, tokenizer)


def test_llmcs_tokenizer_of_gpt2_has_gpt2s_merges(tmp_path, gpt2_tokenizer):
    shared("gpt2")
    model = GPT(numgpt.GPTConfig(n_layer=1, n_head=1, n_embd=1, n_positions=2))
    (tmp_path / "gpt2_124M.bin").write_bytes(llmc_checkpoint(model, 5, 50304))
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(llmc_tokenizer(gpt2_tokenizer))
    loaded, read = numgpt.load(tmp_path)
    assert_same_tokens(read, gpt2_tokenizer)
    assert loaded.config.eos_token_id == read.eos_token_id == 50256


# What is there tells what it is


def test_a_directory_with_several_models_lists_them(tmp_path):
    model = small_model("default")
    (tmp_path / "a.gguf").write_bytes(model_gguf(model))
    (tmp_path / "sub.gguf").mkdir()
    (tmp_path / "sub.bin").mkdir()
    (tmp_path / "other.bin").write_bytes(b"none of llm.c's")
    assert_same(load_model(tmp_path), model)
    (tmp_path / "b.gguf").write_bytes(model_gguf(model))
    (tmp_path / "model.bin").write_bytes(llmc_checkpoint(model))
    save_torch(tmp_path / "ckpt.pt", nanogpt_checkpoint(model))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match="several models") as error:
            load(tmp_path)
        assert "name one of a.gguf, b.gguf, ckpt.pt, model.bin" in str(error.value)
    assert_same(load_model(tmp_path / "model.bin"), model)
    model.save_pretrained(tmp_path)  # a directory in Hugging Face's layout is that model
    assert_same(load_model(tmp_path), model)
