"""GGUF out: the container of gguf.py, and models in it as llama.cpp's own converter lays them out.

Matrices are stored as F32, F16, BF16 or Q8_0, vectors and the table of positions as F32. In Q8_0,
blocks of 32 weights share a scale d, a float16:

    w ≈ d q,   d = max|w| / 127,   q = round(w / d), a half away from zero
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from numgpt.files import replacing
from numgpt.formats import llamacpp
from numgpt.formats.families import family_of
from numgpt.formats.gguf import ARRAY, MAGIC, STRING, TENSOR_TYPES, VERSIONS
from numgpt.formats.llamacpp import CONTROL, ENDS, PATTERNS, UNUSED, USER_DEFINED
from numgpt.formats.safetensors import converted
from numgpt.formats.source import is_finite
from numgpt.layers import rope_frequencies
from numgpt.messages import shown
from numgpt.models import GPT, LanguageModel, Llama
from numgpt.options import OptionError
from numgpt.reading import about
from numgpt.runtime import parallel_for
from numgpt.tokenizer import BaseTokenizer, Tokenizer
from numgpt.tokenizer.byte_alphabet import to_printable

ALIGNMENT = 32
NORMAL = 1  # of tokenizer.ggml.token_type
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # general.file_type, llama.cpp's numbers
BLOCK, BLOCK_BYTES = 32, 34  # of Q8_0
ROWS_AT_ONCE = 1 << 17  # weights that are rounded at a time
# What is compared of the tokenizer with what is read again.
SAME = [
    *("vocabulary", "merges", "special_tokens", "added_tokens", "normalizer", "ignore_merges"),
    *("add_prefix_space", "add_bos_token", "chat_template"),
]
EXPRESSIBLE = ("gelu_new", "gelu_pytorch_tanh")  # GPT-2's activation in llama.cpp

Metadata = dict[str, str | bool | int | float | list[str] | np.ndarray]


def save_gguf(
    model: LanguageModel,
    tokenizer: BaseTokenizer | None,
    path: str | os.PathLike,
    kind: str = "Q8_0",
    report: Callable[[str], None] = lambda name: None,
) -> None:
    """Write a model, and its tokenizer, as one GGUF file; kind: F32, F16, BF16 or Q8_0. `report` is
    called with each tensor's name as its turn comes.

    Raises ValueError for what GGUF, or llama.cpp, can't say of a model or a tokenizer.
    """
    if kind not in FILE_TYPES:
        raise OptionError(f"{{gguf}}: expected {', '.join(FILE_TYPES)}", gguf=kind)
    if model.adapter is not None and not model.is_merged:
        raise ValueError("the model has an adapter: merge_adapter() first makes both one")
    if model.score_head is not None:
        raise ValueError("the model is a reward model: its score head has no place in GGUF")
    metadata = metadata_of(model) | {"general.file_type": FILE_TYPES[kind]}
    if tokenizer is not None:
        metadata |= metadata_of_tokenizer(tokenizer, model)
        _check_same(tokenizer, metadata)
    tensors = list(_tensors(model, kind))
    header = _header(metadata, [(name, kind, shape) for name, kind, shape, _ in tensors])
    with replacing(path) as file:
        file.write(header)
        for name, stored_as, _, made in tensors:
            report(name)
            _write_tensor(file, name, stored_as, made())


# --- the container ---


def _header(metadata: Metadata, tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """All before the data."""
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    parts += [_string(name) + _value(value) for name, value in metadata.items()]
    offset = 0
    for name, kind, shape in tensors:
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        parts.append(_string(name) + axes + struct.pack("<IQ", TENSOR_TYPES.index(kind), offset))
        offset += _padded(_nbytes(kind, shape))
    header = b"".join(parts)
    return header.ljust(_padded(len(header)), b"\0")


def _value(value: Any) -> bytes:
    """The type and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):  # of int32
        return struct.pack("<IIQ", ARRAY, 5, len(value)) + value.astype("<i4").tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<If", 6, value)


def _string(text: str) -> bytes:
    data = text.encode(errors="replace")
    return struct.pack("<Q", len(data)) + data


def _nbytes(kind: str, shape: tuple[int, ...]) -> int:
    count = math.prod(shape)
    return count // BLOCK * BLOCK_BYTES if kind == "Q8_0" else count * (4 if kind == "F32" else 2)


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _write_tensor(file: BinaryIO, name: str, kind: str, array: np.ndarray) -> None:
    rows = np.ascontiguousarray(array, np.float32)
    if not is_finite(rows):
        raise ValueError(f"{name} holds NaN or infinity: such weights are not saved")
    stored = quantise_q8_0(rows) if kind == "Q8_0" else converted(name, rows, kind)
    if kind == "Q8_0" and np.isinf(stored[:, :2].view("<f2")).any():
        raise OverflowError(f"{name} holds values beyond float16's 65504: choose another type")
    file.write(stored.data)
    file.write(b"\0" * (-stored.nbytes % ALIGNMENT))


def quantise_q8_0(array: np.ndarray) -> np.ndarray:
    """float32, in C order -> blocks (n, 34), as uint8."""
    weights = array.reshape(-1, BLOCK)
    blocks = np.empty((len(weights), BLOCK_BYTES), np.uint8)
    step = ROWS_AT_ONCE // BLOCK

    def some(index: int) -> None:
        chunk = slice(step * index, step * (index + 1))
        w = weights[chunk]
        d = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
        with np.errstate(divide="ignore"):
            w_d = w * np.where(d == 0, np.float32(0), 1 / d)
        q = np.trunc(w_d + np.copysign(np.float32(0.5), w_d))
        with np.errstate(over="ignore"):
            blocks[chunk, :2] = d.astype("<f2").view(np.uint8)
        blocks[chunk, 2:] = q.astype(np.int8).view(np.uint8)

    parallel_for(some, -(-len(weights) // step))
    return blocks


# --- a model ---


def metadata_of(model: LanguageModel) -> Metadata:
    """Its sizes.  Raises ValueError for what llama.cpp computes otherwise."""
    config, name = model.config, Path(str(model.name_or_path or "numgpt")).name
    if isinstance(model, GPT):
        if config.activation_function not in EXPRESSIBLE:
            raise ValueError(
                f"activation_function={shown(config.activation_function)}: GGUF can't say so,"
                f" llama.cpp computes {EXPRESSIBLE[0]}"
            )
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            raise ValueError("attention is scaled otherwise than by 1/√D: GGUF can't say so")
        of_family = {"attention.layer_norm_epsilon": float(config.layer_norm_epsilon)}
        kind = "gpt2"
    else:
        assert isinstance(model, Llama)
        kind = config.model_type
        biases = config.attention_bias, config.output_bias, config.mlp_bias
        square = config.heads * config.head_size == config.width
        if kind == "qwen2" and not (biases == (True, False, False) and square):
            raise ValueError(
                "a Qwen2 in GGUF has biases of queries, keys, values, and square heads"
            )
        if kind == "qwen3" and any(biases):
            raise ValueError("a Qwen3 in GGUF has no biases")
        of_family = {
            "attention.head_count_kv": config.kv_heads,
            "attention.key_length": config.head_size,
            "attention.value_length": config.head_size,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "rope.dimension_count": config.head_size,
            "rope.freq_base": float(config.rope_theta),
        }
    sizes = {
        "block_count": config.layers,
        "context_length": config.context_length,
        "embedding_length": config.width,
        "feed_forward_length": config.inner_width,
        "attention.head_count": config.heads,
        "vocab_size": config.vocab_size,
    }
    told: Metadata = {"general.architecture": kind, "general.type": "model", "general.name": name}
    told |= {"general.quantization_version": 2, "general.alignment": ALIGNMENT}
    return told | {f"{kind}.{name}": value for name, value in (sizes | of_family).items()}


def _tensors(
    model: LanguageModel, kind: str
) -> Iterator[tuple[str, str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """llama.cpp's names, types and shapes, and functions that make the arrays."""
    config, family = model.config, family_of(model)
    mapping = llamacpp.MAPPINGS[family.model_type](family, config)
    for name, array in model.parameters.items():
        is_matrix = array.ndim == 2 and name not in model.embeddings[1:]
        shape = mapping.stored_shape(name, array.shape)
        if is_matrix and kind == "Q8_0" and shape[1] % BLOCK:
            raise ValueError(
                f"{name} has rows of {shape[1]}, and Q8_0 blocks of {BLOCK}: choose another type"
            )

        def made(name: str = name, shape: tuple[int, ...] = shape) -> np.ndarray:
            return mapping.as_stored(name, np.asarray(model.parameters[name])).reshape(shape)

        yield mapping.stored_name(name), kind if is_matrix else "F32", shape, made
    if getattr(config, "rope_scaling", None):
        factors = rope_frequencies(config.head_size, config.rope_theta) / config.frequencies()
        yield llamacpp.FREQUENCY_FACTORS, "F32", factors.shape, lambda: factors


def metadata_of_tokenizer(tokenizer: BaseTokenizer, model: LanguageModel) -> Metadata:
    """Raises ValueError for a tokenizer that is no byte-level BPE that llama.cpp knows."""
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError("a tokenizer of characters has no place in GGUF, only byte-level BPE")
    known = {pattern: pre for pre, pattern in reversed(PATTERNS.items())}
    if (pre := known.get(tokenizer.pattern.name)) is None:
        raise ValueError(f"GGUF has no name for the pattern {shown(tokenizer.pattern.name)}")
    size = model.config.vocab_size
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's table {size}: GGUF has"
            " no place for the others"
        )
    tokens, types = [f"[UNUSED{id}]" for id in range(size)], np.full(size, UNUSED, np.int32)
    for token, id in tokenizer.vocabulary.items():
        tokens[id], types[id] = to_printable(token), NORMAL
    kinds = {USER_DEFINED: tokenizer.added_tokens, CONTROL: tokenizer.special_tokens}
    for kind, named in kinds.items():
        for text, id in named.items():
            tokens[id], types[id] = text, kind
    merges = [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    told: Metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.add_bos_token),
    }
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    eos = tokenizer.eos_token_id
    eos = eos if eos in ends or not ends else ends[0]
    others = dict(zip(ENDS[1:], (id for id in ends if id != eos), strict=False))
    if len(ends) > len(ENDS):
        raise ValueError(f"eos_token_id={ends}: GGUF has room for {len(ENDS)}")
    ids = {"bos": tokenizer.bos_token_id, ENDS[0]: eos} | others
    told |= {f"tokenizer.ggml.{n}_token_id": int(i) for n, i in ids.items() if i is not None}
    if tokenizer.chat_template is not None:
        told["tokenizer.chat_template"] = tokenizer.chat_template
    return told


def _check_same(tokenizer: BaseTokenizer, metadata: Metadata) -> None:
    """Raises ValueError where a reader of the file would tokenise in another way."""
    with about("GGUF can't hold the tokenizer"):
        told = llamacpp.read_tokenizer(llamacpp.Metadata(Path("the file"), dict(metadata)))
    for name in SAME:
        if getattr(told, name) != getattr(tokenizer, name):
            raise ValueError(
                f"GGUF can't say the tokenizer's {name}: it would be read as"
                f" {shown(getattr(told, name))}"
            )
