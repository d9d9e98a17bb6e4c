"""llm.c's checkpoints (Karpathy 2024): .bin files of version 3 (float32) and 5 (bfloat16).

    256 x i32     20240326, version, longest sequence, vocabulary, layers, heads, width,
                  vocabulary with padding, zeros
    values        each kind of parameter for all layers at once, in the order of PARAMETERS;
                  linear weights (out, in)

and its tokenizer, gpt2_tokenizer.bin:

    256 x u32     20240328, version, vocabulary, from version 2 the id of <|endoftext|>, zeros
    tokens        length (u8) and bytes, in the order of their ids

It names no merges, but they are in it: a token was made by merging its last two parts, and ids are
in the order in which tokens were made.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from numgpt.formats import gpt2
from numgpt.formats.nanogpt import NanoGPTWeightMapping
from numgpt.formats.source import Source
from numgpt.formats.tensors import DTYPES, StoredTensor
from numgpt.models.gpt2 import GPT, GPTConfig
from numgpt.reading import about
from numgpt.tokenizer import BaseTokenizer, Tokenizer, load_tokenizer
from numgpt.tokenizer.base import END_OF_TEXT

MAGIC, TOKENIZER_MAGIC = 20240326, 20240328
VERSIONS = {3: "F32", 5: "BF16"}
HEADER_BYTES = 1024
TOKENIZER_FILE = "gpt2_tokenizer.bin"
LAYERS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj", "ln_f")
PARAMETERS = ("wte", "wpe", *(f"{name}.{part}" for name in LAYERS for part in ("weight", "bias")))


def is_llmc(path: Path) -> bool:
    """Whether the file begins like one."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def open_checkpoint(path: Path) -> Source:
    """The model in a .bin file."""
    header = _header(path)
    version, positions, vocabulary, layers, heads, width, padded = header[1:8].tolist()
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: version {version} of llm.c's format is not supported, only 3 (float32) and"
            " 5 (bfloat16)"
        )
    config = GPTConfig(
        n_layer=layers, n_head=heads, n_embd=width, n_positions=positions, vocab_size=vocabulary
    )
    try:
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: the header says {error}; copy or download it again") from None
    if padded < vocabulary:
        raise ValueError(
            f"{path}: the vocabulary of {vocabulary} is padded to {padded}, which is less; copy or"
            " download it again"
        )
    config.bos_token_id = config.eos_token_id = gpt2.end_of_text_id(vocabulary)
    _check_size(path, config, padded, VERSIONS[version])
    mapping = NanoGPTWeightMapping(gpt2.FAMILY, config)
    tensors = _tensors(path, config, padded, VERSIONS[version], mapping)
    return Source(
        path, path, gpt2.FAMILY, config, tensors, mapping, lambda: _tokenizer(path.parent)
    )


def _tensors(
    path: Path, config: GPTConfig, padded: int, dtype: str, mapping: NanoGPTWeightMapping
) -> list[tuple[str, StoredTensor]]:
    shapes, itemsize = GPT.shapes(config), DTYPES[dtype].itemsize
    tensors, offset = [], HEADER_BYTES
    for kind in PARAMETERS:
        names = [kind] if kind in shapes else [f"h.{n}.{kind}" for n in range(config.n_layer)]
        for name in names:
            shape = mapping.stored_shape(name, shapes[name])
            stored = mapping.stored_name(name)
            tensors.append((stored, StoredTensor(path, stored, dtype, shape, offset)))
            rows = padded if name == "wte" else shape[0]  # the padding's rows are left out
            offset += rows * math.prod(shape[1:]) * itemsize
    return tensors


def _check_size(path: Path, config: GPTConfig, padded: int, dtype: str) -> None:
    """Raises ValueError unless the file is as long as the sizes in its header make it."""
    one_layer = GPT.shapes(dataclasses.replace(config, n_layer=1, vocab_size=padded))
    block = sum(math.prod(shape) for name, shape in one_layer.items() if name.startswith("h."))
    rest = sum(math.prod(shape) for name, shape in one_layer.items() if name[:2] != "h.")
    expected = HEADER_BYTES + (rest + config.n_layer * block) * DTYPES[dtype].itemsize
    if expected != (size := path.stat().st_size):
        raise ValueError(
            f"{path} is {size} bytes long, the sizes in its header make {expected}: copy or"
            " download it again"
        )


def _header(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        data = file.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise ValueError(f"{path} ends within its header: copy or download it again")
    return np.frombuffer(data, "<i4")


def _tokenizer(directory: Path) -> BaseTokenizer:
    """From gpt2_tokenizer.bin, where there is one, else from the usual files."""
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        try:
            return load_tokenizer(directory)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, or llm.c's {TOKENIZER_FILE}") from None
    magic, version, count, end_of_text = _header(path)[:4].tolist()
    if magic != TOKENIZER_MAGIC or version not in (1, 2) or count < 1:
        raise ValueError(f"{path} is no tokenizer of llm.c, version 1 or 2")
    data, place, tokens = path.read_bytes(), HEADER_BYTES, []
    for number in range(count):
        stop = place + 1 + data[place] if place < len(data) else len(data) + 1
        if stop > len(data):
            raise ValueError(f"{path} ends within token {number} of {count}; download it again")
        tokens.append(data[place + 1 : stop])
        place = stop
    special = {END_OF_TEXT: end_of_text if version == 2 else count - 1}
    if not 0 <= special[END_OF_TEXT] < count:
        raise ValueError(f"{path}: {END_OF_TEXT} is token {end_of_text} of {count}")
    vocabulary = {token: id for id, token in enumerate(tokens) if id != special[END_OF_TEXT]}
    if b"" in vocabulary or len(vocabulary) < count - 1:
        raise ValueError(f"{path}: a token is empty or there twice; download it again")
    merges = [parts for token in vocabulary if (parts := _last_parts(token, vocabulary))]
    with about(path):
        return Tokenizer(vocabulary, merges, special)


def _last_parts(token: bytes, vocabulary: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that a token was made of: what earlier merges leave of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        made = [vocabulary.get(left + right, math.inf) for left, right in pairwise(parts)]
        first = min(made)
        if first >= vocabulary[token]:
            return None
        place = made.index(first)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
