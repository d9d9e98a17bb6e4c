"""numgpt info: what a model is made of, and what the machine runs it with."""

from __future__ import annotations

import argparse
import dataclasses
import platform
from collections import Counter
from typing import Any

import numpy as np

import numgpt
from numgpt.cli.common import add_command
from numgpt.formats import SHIPPED, load_model

# What in a parameter's name tells where it belongs; the first that fits.
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
        "show a model's parts, and the BLAS, kernels and threads in use",
        "numgpt info",
        run,
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=SHIPPED,
        help=f"a model's directory or file, a name or a hub id (default: {SHIPPED})",
    )


def run(options: argparse.Namespace) -> None:
    model = load_model(options.model)
    total, size = model.num_parameters(), model.parameters.flat.itemsize
    print(f"model {options.model}: {type(model).__name__}, {total:,} parameters")
    parts: Counter[str] = Counter()
    for name, array in model.parameters.items():
        parts[_part(name)] += array.size
    for part, count in parts.items():
        print(f"  {part:<24}{count:>14,}  {count / total:6.1%}")
    layers, heads, head_size = model.cache_shape
    print("memory, float32")
    print(f"  {'weights':<24}{_megabytes(total * size)}")
    print(
        f"  {'training, without batch':<24}{_megabytes(4 * total * size)}  (weights, gradients,"
        " two moments)"
    )
    cache = 2 * layers * heads * head_size * model.context_length * size
    print(
        f"  {'KV cache, full':<24}{_megabytes(cache)}  (one sequence of"
        f" {model.context_length} tokens)"
    )
    print("config")
    for name, value in dataclasses.asdict(model.config).items():
        print(f"  {name:<32}{value}")
    print("machine")
    facts = {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        **numgpt.runtime.kernels.describe(),
    }
    for name, value in (facts | {"threads": numgpt.runtime.num_threads()}).items():
        print(f"  {name:<10}{value}")


def _part(name: str) -> str:
    """What a parameter belongs to, the blocks taken together."""
    for sign, part in PARTS.items():
        if sign in name:
            return part
    return "other"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:>11,.1f} MB"
