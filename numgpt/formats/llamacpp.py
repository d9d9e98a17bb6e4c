"""Models in GGUF files, as llama.cpp names and lays them out: weights, tokenizer, chat template.

Matrices are (out, in). The rows that make a Llama's queries and keys pair neighbours for the
rotation, ours and Hugging Face's pair halves. Llama 3's slowed-down frequencies are stored as the
factors by which they are divided.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from numgpt.formats.families import FAMILIES
from numgpt.formats.gguf import read_gguf
from numgpt.formats.source import Source, WeightMapping
from numgpt.formats.tensors import StoredTensor
from numgpt.messages import shown
from numgpt.models.gpt2 import GPTConfig
from numgpt.models.llama import LlamaConfig
from numgpt.options import LARGEST_ID
from numgpt.reading import about
from numgpt.tokenizer import Tokenizer, build_bpe

# tokenizer.ggml.pre, where llama.cpp's splitting is one of our patterns.
PATTERNS = {
    **dict.fromkeys(("gpt-2", "phi-2"), "gpt2"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), "llama3"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), "smollm"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen2"),
}
# Of tokenizer.ggml.token_type: special, found in any text, there for the table's size alone.
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message: each ends what is generated
FREQUENCY_FACTORS = "rope_freqs.weight"
# The scaling that published Llama 3.1 and 3.2 models share; their factors differ.
LLAMA3: dict[str, float | str] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class Metadata:
    """A GGUF file's metadata, each entry checked for its type when it is asked for."""

    def __init__(self, path: Path, entries: dict[str, Any]):
        self.path = path
        self.entries = entries

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The entry, or the default where it is missing.  Raises ValueError for another type."""
        value = self.entries.get(name, default)
        if value is default:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(
                f"{self.path}: {name} is {str(value)[:40]!r}, expected {kind.__name__}"
            )
        return value

    def require(self, name: str, kind: type) -> Any:
        """The entry.  Raises ValueError where it is missing."""
        if name not in self.entries:
            raise ValueError(f"{self.path} lacks the metadata entry {shown(name)}")
        return self.get(name, kind)


def open_file(path: Path) -> Source:
    """The model in a GGUF file."""
    entries, tensors = read_gguf(path)
    metadata = Metadata(path, entries)
    architecture = metadata.require("general.architecture", str)
    if metadata.get("split.count", int, 1) > 1:
        raise ValueError(
            f"{path} is one of several shards, which is not supported: merge them first"
            " (llama-gguf-split --merge)"
        )
    if architecture not in MAPPINGS:
        raise ValueError(
            f"{path}: general.architecture={shown(architecture)} is not supported, only"
            f" {', '.join(MAPPINGS)}"
        )
    family = FAMILIES[architecture]
    config_from = _gpt2_config if architecture == "gpt2" else _llama_config
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: the weights lack 'token_embd.weight'")
    if not tensors["token_embd.weight"].shape:
        raise ValueError(f"{path}: tensor 'token_embd.weight' has shape []")
    ends = [metadata.get(f"tokenizer.ggml.{end}_token_id", int) for end in ENDS]
    ends = sorted({id for id in ends if id is not None and id < LARGEST_ID})
    with about(path):
        config = config_from(metadata, tensors)
        bos = metadata.get("tokenizer.ggml.bos_token_id", int, LARGEST_ID)
        config.bos_token_id = bos if bos < LARGEST_ID else None  # -1 says none, in 32 bits
        config.eos_token_id = (ends or [None])[0] if len(ends) < 2 else ends
        config.validate()
    mapping, named = MAPPINGS[architecture](family, config), tensors.items()
    return Source(path, path, family, config, named, mapping, lambda: read_tokenizer(metadata))


def read_tokenizer(metadata: Metadata) -> Tokenizer:
    """The byte-level BPE and the chat template in a file's metadata."""
    path, kind = metadata.path, metadata.require("tokenizer.ggml.model", str)
    if kind != "gpt2":
        known = {"llama": " (SentencePiece)", "bert": " (WordPiece)", "t5": " (Unigram)"}
        raise ValueError(
            f"{path}: tokenizer.ggml.model={shown(kind)}{known.get(kind, '')} is not supported,"
            " only byte-level BPE ('gpt2')"
        )
    tokens = metadata.require("tokenizer.ggml.tokens", list)
    pre = metadata.get("tokenizer.ggml.pre", str, "default")
    if pre == "default":  # as in older files; then other things have to tell
        family = metadata.get("general.architecture", str)
        of_family = {"gpt2": "gpt-2", "qwen2": "qwen2"}.get(family, pre)
        pre = "llama-bpe" if "<|begin_of_text|>" in tokens else of_family
    if pre not in PATTERNS:
        raise ValueError(
            f"{path}: tokenizer.ggml.pre={shown(pre)} is not supported, only {', '.join(PATTERNS)}"
        )
    merges = metadata.require("tokenizer.ggml.merges", list)
    if not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise ValueError(f"{path}: tokenizer.ggml.tokens and merges are not lists of text")
    types = metadata.get("tokenizer.ggml.token_type", np.ndarray, np.ones(len(tokens), np.int32))
    if len(types) != len(tokens):
        raise ValueError(
            f"{path}: tokenizer.ggml.token_type has {len(types)} entries, tokens {len(tokens)}"
        )
    special, added = (
        {tokens[id]: id for id in np.flatnonzero(types == kind).tolist()}
        for kind in (CONTROL, USER_DEFINED)
    )

    def named(end: str) -> str | None:
        id = metadata.get(f"tokenizer.ggml.{end}_token_id", int)
        return tokens[id] if id is not None and id < len(tokens) else None

    pattern = PATTERNS[pre]
    with about(path):
        if len(set(tokens)) < len(tokens):
            raise ValueError("tokenizer.ggml.tokens has the same token twice")
        return build_bpe(
            {token: id for id, token in enumerate(tokens) if types[id] != UNUSED},
            merges,
            special,
            added,
            pattern=pattern,
            normalizer="NFC" if pattern == "qwen2" else None,
            ignore_merges=pattern == "llama3",
            bos_token=named("bos"),
            eos_token=named("eos"),
            add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", bool, pattern == "llama3"),
            chat_template=metadata.get("tokenizer.chat_template", str),
        )


def _gpt2_config(metadata: Metadata, tensors: dict[str, StoredTensor]) -> GPTConfig:
    return GPTConfig(
        n_layer=metadata.require("gpt2.block_count", int),
        n_head=metadata.require("gpt2.attention.head_count", int),
        n_embd=metadata.require("gpt2.embedding_length", int),
        n_positions=metadata.require("gpt2.context_length", int),
        n_inner=metadata.get("gpt2.feed_forward_length", int),
        layer_norm_epsilon=metadata.get("gpt2.attention.layer_norm_epsilon", float, 1e-5),
        vocab_size=tensors["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in tensors,
    )


def _llama_config(metadata: Metadata, tensors: dict[str, StoredTensor]) -> LlamaConfig:
    kind = metadata.require("general.architecture", str)  # llama, qwen2 or qwen3
    heads = metadata.require(f"{kind}.attention.head_count", int)
    config = LlamaConfig(
        model_type=kind,
        num_hidden_layers=metadata.require(f"{kind}.block_count", int),
        num_attention_heads=heads,
        num_key_value_heads=metadata.get(f"{kind}.attention.head_count_kv", int, heads),
        hidden_size=metadata.require(f"{kind}.embedding_length", int),
        head_dim=metadata.get(f"{kind}.attention.key_length", int),
        intermediate_size=metadata.require(f"{kind}.feed_forward_length", int),
        max_position_embeddings=metadata.require(f"{kind}.context_length", int),
        rms_norm_eps=metadata.require(f"{kind}.attention.layer_norm_rms_epsilon", float),
        rope_theta=metadata.get(f"{kind}.rope.freq_base", float, 10000.0),
        vocab_size=tensors["token_embd.weight"].shape[0],
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        tie_word_embeddings="output.weight" not in tensors,
    )
    config.validate()
    scaling = metadata.get(f"{kind}.rope.scaling.type", str, "none")
    if scaling != "none":
        raise ValueError(f"{kind}.rope.scaling.type={shown(scaling)} is not supported")
    for name in (f"{kind}.rope.dimension_count", f"{kind}.attention.value_length"):
        if (size := metadata.get(name, int, config.head_size)) != config.head_size:
            raise ValueError(f"{name}={size} is not supported: heads have size {config.head_size}")
    if metadata.get(f"{kind}.attention.sliding_window", int, 0):
        raise ValueError(f"{kind}.attention.sliding_window is not supported")
    if metadata.get(f"{kind}.expert_count", int, 0):
        raise ValueError(f"{kind}.expert_count: a mixture of experts is not supported")
    if FREQUENCY_FACTORS in tensors:
        _set_scaling(config, tensors[FREQUENCY_FACTORS])
    return config


def _set_scaling(config: LlamaConfig, stored: StoredTensor) -> None:
    """Llama 3's scaling in the terms of a config, from the factors in the file."""
    if stored.shape != (config.head_size // 2,):
        raise ValueError(
            f"{FREQUENCY_FACTORS} has shape {list(stored.shape)}, heads of size"
            f" {config.head_size} ask for {[config.head_size // 2]}"
        )
    plain = config.frequencies()
    factors = np.empty(stored.shape, np.float32)
    stored.read_into(factors)
    if not np.isfinite(factors).all() or factors.min() <= 0:
        raise ValueError(f"{FREQUENCY_FACTORS} holds what is no factor")
    config.rope_scaling = LLAMA3 | {"factor": float(factors.max())}
    if not np.allclose(plain / config.frequencies(), factors, rtol=1e-4):
        raise ValueError(f"{FREQUENCY_FACTORS} is not the scaling of Llama 3.1 or 3.2")


class GGUFWeightMapping(WeightMapping):
    """llama.cpp's names; a family adds which there are."""

    in_order = False
    prefix: ClassVar[str]  # of our names in a block, …
    layers: ClassVar[dict[str, str]]  # … llama.cpp's names in it -> ours
    tables: ClassVar[dict[str, str]]  # and outside of the blocks

    def our_name(self, stored: str) -> str | None:
        if stored == FREQUENCY_FACTORS:
            return None
        if (match := _BLOCK.fullmatch(stored)) and match[2] in self.layers:
            return f"{self.prefix}.{match[1]}.{self.layers[match[2]]}.{match[3]}"
        return self.tables.get(stored, f"unknown {stored}")

    def stored_name(self, name: str) -> str:
        theirs = {ours: stored for stored, ours in (self.tables | self.layers).items()}
        if name in theirs:
            return theirs[name]
        _, layer, *parts, kind = name.split(".")
        return f"blk.{layer}.{theirs['.'.join(parts)]}.{kind}"


class GPT2WeightMapping(GGUFWeightMapping):
    transposes_linear = True
    prefix = "h"
    layers: ClassVar = {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    }
    tables: ClassVar = {
        "token_embd.weight": "wte",
        "position_embd.weight": "wpe",
        "output_norm.weight": "ln_f.weight",
        "output_norm.bias": "ln_f.bias",
        "output.weight": "lm_head",
    }


class Qwen2WeightMapping(GGUFWeightMapping):
    prefix = "layers"
    layers: ClassVar = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",  # Qwen3's
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    tables: ClassVar = {
        "token_embd.weight": "embed_tokens.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "lm_head.weight",
    }


class LlamaWeightMapping(Qwen2WeightMapping):
    """The same names; what is rotated pairs neighbours."""

    def as_stored(self, name: str, array: np.ndarray) -> np.ndarray:
        if ".q_proj." not in name and ".k_proj." not in name:
            return array
        pairs = self.config.head_size // 2  # (H·D, …) -> (H, D/2, 2, …)
        return array.reshape(-1, 2, pairs, *array.shape[1:]).swapaxes(1, 2)


MAPPINGS = {  # by general.architecture
    "gpt2": GPT2WeightMapping,
    "llama": LlamaWeightMapping,
    "qwen2": Qwen2WeightMapping,
    "qwen3": Qwen2WeightMapping,
}
