"""Writes models as other projects release them, from the descriptions of their formats, for the
tests, good and bad."""

import json
import re
from pathlib import Path

import numpy as np
from formats.gguf_writer import as_type
from formats.tensorflow_writer import write_bundle
from formats.test_pytorch import Tensor, pickled, write_archive

from numgpt import GPT
from numgpt.formats.families import family_of
from numgpt.formats.tensors import c_order
from numgpt.models import LanguageModel
from numgpt.tokenizer import Tokenizer
from numgpt.tokenizer.byte_alphabet import to_printable

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint8): "U8"}


def save_torch(path: Path, value: object, write=write_archive, **options) -> Path:
    """torch.save for plain containers of arrays; the same array twice is one storage."""
    storages: dict[str, bytes] = {}
    keys: dict[int, str] = {}

    def described(value: object) -> object:
        if isinstance(value, np.ndarray):
            key = keys.setdefault(id(value), str(len(keys)))
            storages[key] = np.ascontiguousarray(value).tobytes()
            shape, dtype = value.shape, DTYPES[value.dtype]
            return Tensor(key, value.size, 0, shape, c_order(shape), dtype)
        if isinstance(value, dict):
            return {name: described(entry) for name, entry in value.items()}
        return value

    return write(path, pickled(described(value)), storages, **options)


def state_of(model: LanguageModel, dtype=np.float32) -> dict[str, np.ndarray]:
    """A state_dict of transformers."""
    names = family_of(model)
    return {
        names.stored_name(name): array.astype(dtype) for name, array in model.parameters.items()
    }


def write_pickled_directory(
    directory: Path, model: LanguageModel, dtype=np.float32, write=write_archive
) -> Path:
    """config.json and pytorch_model.bin -> the latter."""
    fields = family_of(model).config_fields(model.config)
    (directory / "config.json").write_text(json.dumps(fields))
    return save_torch(directory / "pytorch_model.bin", state_of(model, dtype), write)


def is_linear(name: str) -> bool:
    return re.fullmatch(r"(transformer\.)?h\.\d+\.(attn|mlp)\.c_\w+\.weight", name) is not None


# nanoGPT


def nanogpt_checkpoint(model: GPT, prefix: str = "", biases: bool = True) -> dict[str, object]:
    config = model.config
    state = {
        prefix + name: array.T.copy() if is_linear(name) else array
        for name, array in state_of(model).items()
        if biases or not name.endswith(".bias")
    }
    state[f"{prefix}lm_head.weight"] = state[f"{prefix}transformer.wte.weight"]
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    sizes |= {"block_size": config.n_positions, "vocab_size": config.vocab_size}
    return {
        "model": state,
        "model_args": sizes | {"bias": biases, "dropout": 0.0},
        "iter_num": 250,
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
    }


# llm.c

LLMC_ORDER = ["wte", "wpe", "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"]
LLMC_ORDER += ["attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"]
LLMC_ORDER += ["mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
LLMC_ORDER += ["ln_f.weight", "ln_f.bias"]


def llmc_header(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes().ljust(1024, b"\0")


def llmc_checkpoint(model: GPT, version: int = 3, padded: int | None = None) -> bytes:
    """The padding holds NaN: it is no part of the model."""
    c, p = model.config, model.parameters
    padded = padded or c.vocab_size
    data = llmc_header(
        20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded
    )
    kind = {3: "F32", 5: "BF16"}[version]
    for name in LLMC_ORDER:
        names = [name] if name in p else [f"h.{layer}.{name}" for layer in range(c.n_layer)]
        for full in names:
            data += as_type(p[full].T if is_linear(full) else p[full], kind)
        if name == "wte":
            rows = np.full((padded - c.vocab_size, c.n_embd), np.nan, np.float32)
            data += as_type(rows, kind)
    return data


def llmc_tokenizer(tokenizer: Tokenizer, version: int = 2) -> bytes:
    count = tokenizer.vocab_size
    data = llmc_header(20240328, version, count, tokenizer.eos_token_id if version == 2 else 0)
    for id in range(count):
        token = tokenizer.token_to_bytes(id)
        data += bytes([len(token)]) + token
    return data


# OpenAI's release


def openai_arrays(model: GPT) -> dict[str, np.ndarray]:
    arrays = {}
    for name, array in model.parameters.items():
        stored = name.replace("h.", "h", 1) if name.startswith("h.") else name
        gain = "g" if ".ln_" in stored or stored.startswith("ln_") else "w"
        stored = stored.replace(".weight", f".{gain}").replace(".bias", ".b").replace(".", "/")
        arrays[f"model/{stored}"] = array[None] if is_linear(name) else array
    return arrays


def write_openai(directory: Path, model: GPT, tokenizer: Tokenizer, shards: int = 1) -> Path:
    c = model.config
    hparams = {"n_vocab": c.vocab_size, "n_ctx": c.n_positions, "n_embd": c.n_embd}
    hparams |= {"n_head": c.n_head, "n_layer": c.n_layer}
    (directory / "hparams.json").write_text(json.dumps(hparams))
    vocabulary = {to_printable(token): id for token, id in tokenizer.vocabulary.items()}
    vocabulary |= tokenizer.special_tokens
    (directory / "encoder.json").write_text(json.dumps(vocabulary))
    lines = [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    text = "\n".join(["#version: 0.2", *lines, ""])
    (directory / "vocab.bpe").write_text(text, encoding="utf-8")
    (directory / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    arrays = list(openai_arrays(model).items())
    write_bundle(directory / "model.ckpt", [dict(arrays[n::shards]) for n in range(shards)])
    return directory
