"""numgpt info: what a model is made of, and what the machine runs it with."""

from __future__ import annotations

import argparse
import dataclasses
import math
import platform
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import numgpt
from numgpt.cli.common import add_command, add_dtype
from numgpt.formats import SHIPPED, is_reward_model, load_adapter, open_model, read_model, resolve
from numgpt.formats.catalogue import CATALOGUE
from numgpt.formats.huggingface import is_model
from numgpt.formats.names import downloaded
from numgpt.formats.peft import base_of, is_adapter
from numgpt.formats.source import Source
from numgpt.runtime import multiplies_rounded
from numgpt.runtime.fewer_bits import KINDS
from numgpt.runtime.onednn import find_onednn
from numgpt.tokenizer.chat_template import ChatTemplate

# What in a parameter's name tells where it belongs, the blocks taken together; the first that fits.
PARTS = {
    "wte": "token embedding",
    "embed_tokens": "token embedding",
    "wpe": "position embedding",
    "lm_head": "head",
    "ln_": "norms",
    "norm": "norms",
    "attn": "attention",
    "mlp": "feed-forward",
}


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "info",
        "show a model's parts, what is downloaded, and the BLAS, kernels and threads in use",
        "numgpt info\nnumgpt info smollm2",
        run,
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=SHIPPED,
        help=f"a model's directory or file, a name or a hub id (default: {SHIPPED})",
    )
    add_dtype(parser)


def run(options: argparse.Namespace) -> None:
    path = resolve(options.model)
    adapter = path if is_adapter(path) and not is_model(path) else None
    source = open_model(path if adapter is None else resolve(base_of(path)))
    model = read_model(source, dtype=options.dtype)
    if adapter is not None:
        print(f"adapter {adapter} of {base_of(path)}: {load_adapter(model, adapter)!r}")
        model.set_adapter(None)
    total, size = model.num_parameters(), model.parameters.dtype.itemsize
    weights = model.parameters.nbytes
    sizes = model.config
    kind = f"{type(model).__name__} ({sizes.model_type})"
    print(f"model {options.model}: {kind}, {total:,} parameters")
    if is_reward_model(path):
        print(
            "a reward model: a score head in place of the unembedding (numgpt eval --preferences)"
        )
    parts: Counter[str] = Counter()
    for name, array in model.parameters.items():
        parts[next((part for sign, part in PARTS.items() if sign in name), "other")] += array.size
    for part, count in parts.items():
        print(f"  {part:<24}{count:>14,}  {count / total:6.1%}")
    for name, value in _on_disk(source).items():
        print(f"{name:<12}{value}")
    print(f"memory, {options.dtype}")
    per_token = 2 * sizes.layers * sizes.kv_heads * sizes.head_size
    cache, length = per_token * model.context_length * size, model.context_length
    in_training = "weights, gradients, two moments, in float32"
    for name, count, what in (
        ("weights", weights, f"{8 * weights / total:.3g} bits each"),
        ("training, without batch", 4 * total * size, in_training),
        ("KV cache, full", cache, f"one sequence of {length} tokens"),
    ):
        print(f"  {name:<24}{_megabytes(count)}  ({what})")
    print("config")
    for name, value in dataclasses.asdict(model.config).items():
        print(f"  {name:<32}{value}")
    print("downloaded")
    for path in downloaded():
        note = f"  ({CATALOGUE[path.name].note})" if path.name in CATALOGUE else ""
        print(f"  {path.name:<24}{_megabytes(_bytes_below(path))}{note}")
    for name in CATALOGUE.keys() - {path.name for path in downloaded()}:
        print(f"  {name:<24}  not yet: numgpt download {name}")
    print("machine")
    facts = {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        **numgpt.runtime.kernels.describe(),
        "oneDNN": find_onednn()[1],
        "fewer bits": ", ".join(
            f"{name} by {'NumPy, in panels' if kind.multiplier() is None else 'oneDNN'}"
            for name, kind in KINDS.items()
        )
        + f"; in training bfloat16 {'by oneDNN' if multiplies_rounded() else 'by NumPy'}",
        "allocator": numgpt.runtime.ALLOCATOR,
    }
    if multiplies_wrongly(np.__version__):
        facts["NumPy"] += "  (can multiply wrongly from several threads: upgrade it)"
    for name, fact in (facts | {"threads": str(numgpt.runtime.num_threads())}).items():
        print(f"  {name:<12}{fact}")


def multiplies_wrongly(version: str) -> bool:
    """Whether products of this NumPy can be wrong where several threads compute them (numpy
    #29391: 2.2.0 to 2.3.4)."""
    parts = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return [2, 2] <= parts <= [2, 3, 4]


def _on_disk(source: Source) -> dict[str, str]:
    """What the files say beyond the weights: how these are stored, and how the model chats."""
    stored: Counter[str] = Counter()
    for _, tensor in source.tensors:
        stored[tensor.dtype] += math.prod(tensor.shape)
    total = sum(stored.values())
    fractions = (f"{dtype} {count / total:.1%}" for dtype, count in stored.most_common())
    facts = {"stored as": ", ".join(fractions)}
    try:
        facts["chat format"] = ChatTemplate(source.read_tokenizer()).format.name
    except (FileNotFoundError, ValueError) as error:
        facts["chat format"] = f"none ({error})"
    return facts


def _bytes_below(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:>11,.1f} MB"
