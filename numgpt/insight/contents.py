"""What a page carries: the steps with their numbers, attention, lens, attribution, losses."""

from __future__ import annotations

import functools
import html
import importlib
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numgpt import layers
from numgpt.insight.attribution import attribution_of
from numgpt.insight.lens import lens_of_streams
from numgpt.insight.notebook import piece
from numgpt.insight.steps import Side, Step
from numgpt.insight.targets import Target
from numgpt.insight.tokens import report_of
from numgpt.insight.trace import Trace, differences
from numgpt.insight.walk import Group, walk
from numgpt.layers import attention, softmax
from numgpt.tokenizer import BaseTokenizer

GENERATOR = "numgpt explain"  # in pages and pictures: who made them
LENS_TOP = 3
REPORT_TOP = 5
PARTS = {
    "embed": "the token's embedding",
    "pos_embed": "the position's embedding",
    "mlps": "feed-forward",
    "mlp_biases": "feed-forward's bias",
    "attention_biases": "attention's bias",
    "final_bias": "the final norm's bias",
}


class View(NamedTuple):
    """Where a page opens, and what is asked of it."""

    tokenizer: BaseTokenizer
    token: int  # the position that is looked at first
    target: int  # the token whose logit there is attributed
    notes: list[str]
    assumed: bool = False  # whether what comes after the last token is the model's own guess


Progress = Callable[[str], object]  # is told what is computed now


def contents(of: Trace, view: View, progress: Progress = lambda what: None) -> dict[str, Any]:
    """Nested dicts, lists and arrays: what `payload.encode` writes, and the page's script reads."""
    model, config, groups, sizes = of.model, of.model.config, walk(of, progress), _sizes(of)
    vocabulary = [piece(view.tokenizer, id) for id in range(config.vocab_size)]
    return {
        "model": _described(of),
        "blocks": len(model.blocks),
        "norm": type(model.final_norm).__name__,
        "text": view.tokenizer.decode(of.ids.tolist()),
        "notes": view.notes,
        "ids": of.ids,
        "targets": of.targets,
        "sizes": sizes,
        "layers": list(of.layers),
        "token": view.token,
        "target": view.target,
        "assumed": view.assumed,
        "loss": of.loss,
        "vocabulary": vocabulary,
        "groups": [
            group._asdict() | {"steps": [_step(step, sizes) for step in group.steps]}
            for group in groups
        ],
        "functions": _functions(groups),
        "patterns": {
            layer: {"p": _pattern(of.activations, layer), "dp": _pattern(of.gradients, layer)}
            for layer in of.layers
        },
        "logits": _drawable(of, view).astype(np.float64),
        "lens": _lens(of, progress),
        "attribution": _attribution(of, view, progress),
        "report": _report(of),
        "checks": differences(of, _checked_hooks(of), view.token, progress),
    }


def _drawable(of: Trace, view: View) -> np.ndarray:
    """Logits less their largest; those of ids that the tokenizer lacks, which a vocabulary may be
    padded with, are never drawn."""
    logits = of.logits - of.logits.max(axis=1, keepdims=True)
    logits[:, view.tokenizer.vocab_size :] = -np.inf
    return logits


def _pattern(arrays: dict[str, np.ndarray], layer: int) -> np.ndarray:
    """(query, H, key), 0 where the key is later."""
    matrices = arrays[f"blocks.{layer}.attn.hook_pattern"]  # (H, query, key)
    return np.where(np.tri(matrices.shape[1], dtype=bool), matrices, 0).swapaxes(0, 1)


def _checked_hooks(of: Trace) -> list[str]:
    """The hooks whose gradients are checked: those of the first block that is kept, and those
    outside the blocks."""
    block = [name for name in of.gradients if name.startswith(f"blocks.{of.layers[0]}.")]
    last = f"{of.model.blocks[-1].hook_prefix}hook_resid_post"
    return ["hook_embed", *block, last, "ln_final.hook_normalized"]


def _described(of: Trace) -> str:
    model, config, path = of.model, of.model.config, of.model.name_or_path
    name = type(model).__name__ if path is None else os.path.basename(path.rstrip("/")) or path
    shared = "" if config.kv_heads == config.heads else f" on {config.kv_heads} KV heads"
    adapted = "" if model.adapter is None else f"; with the adapter {model.adapter!r}"
    return (
        f"{name}: {type(model).__name__} ({config.model_type}) of"
        f" {model.num_parameters():,} parameters,"
        f" {len(model.blocks)} layers of width {config.width:,}, {config.heads} heads{shared} of"
        f" size {config.head_size}, vocabulary {config.vocab_size:,}, context"
        f" {model.context_length:,}{adapted}"
    )


def _sizes(of: Trace) -> dict[str, int]:
    """The letters of shapes, as numbers."""
    config, time = of.model.config, len(of.ids)
    found = {"B": 1, "T": time, "S": time, "H": config.heads, "K": config.kv_heads}
    found |= {"D": config.head_size, "C": config.width, "F": config.inner_width}
    return found | {"V": config.vocab_size, "P": config.context_length}


def _step(step: Step, letters: dict[str, int]) -> dict[str, Any]:
    title, lesson = step.formula.title, step.formula.lesson
    sides = {name: _side(step, name, letters) for name in ("forward", "backward")}
    return {"name": step.name, "title": title, "hook": step.hook, "lesson": lesson} | sides


def _side(step: Step, direction: str, letters: dict[str, int]) -> dict[str, Any]:
    equation, shapes, functions, symbols = step.formula.of(direction)
    side: Side = getattr(step, direction)
    return {
        "words": step.formula.words if direction == "forward" else "",
        "equation": equation_html(equation),
        "symbols": equation_html(symbols) if symbols else "",
        "shapes": [_shape(part, letters) for part in shapes.split("; ")],
        "functions": functions,
        "strips": side.strips,
        "tables": side.tables,
    }


def equation_html(equation: str) -> str:
    """ "s_ij = q_i · k_j" with its indices below the line."""
    indexed = re.sub(r"_(?:\{([^}]*)\}|([A-Za-z0-9]+))", r"<sub>\1\2</sub>", html.escape(equation))
    return " ".join(f"<span>{part}</span>" for part in indexed.split("   "))


def _shape(text: str, letters: dict[str, int]) -> str:
    """ "x: BTC" -> "x (B, T, C) = (1, 20, 768)"."""
    names, _, axes = text.partition(": ")
    numbers = ", ".join(str(letters[axis]) for axis in axes)
    return f"{names} ({', '.join(axes)}) = ({numbers})"


def _functions(groups: list[Group]) -> dict[str, dict[str, Any]]:
    """The text of the functions that the steps name, and of the derivations in their files."""
    formulas = {step.formula for group in groups for step in group.steps}
    directions = [formula.of(name) for formula in formulas for name in ("forward", "backward")]
    names = {name for _, _, functions, _ in directions for name in functions}
    return {name: source_of(name) for name in sorted(names)}


@functools.cache
def source_of(name: str) -> dict[str, Any]:
    """File, line, text and derivation of a function of numgpt.layers."""
    function = next(
        getattr(module, name) for module in (layers, attention, softmax) if hasattr(module, name)
    )
    text, line = inspect.getsourcelines(function)
    module = importlib.import_module(function.__module__)
    file = function.__module__.replace(".", "/") + ".py"
    return {"file": file, "line": line, "text": "".join(text), "derivation": module.__doc__ or ""}


def _lens(of: Trace, progress: Progress) -> dict[str, Any]:
    progress("the lens")
    streams = {name: array[None] for name, array in of.activations.items()}
    lens = lens_of_streams(of.model, of.ids[None], streams)
    log_probs = lens.log_probs[:, 0]
    top = np.argsort(-log_probs, axis=-1, kind="stable")[..., :LENS_TOP]
    return {
        "names": ["embedding", *(f"block {block.layer}" for block in of.model.blocks)],
        "top": top,
        "probabilities": np.exp(np.take_along_axis(log_probs, top, -1), dtype=np.float64),
        "kl": np.maximum(lens.kl[:, 0], 0, dtype=np.float64),
        "ranks": lens.ranks[:, 0],
        "predicted": lens.targets[0],
    }


def _attribution(of: Trace, view: View, progress: Progress) -> dict[str, Any]:
    """Of each token the parts of one logit: what comes next, or at the chosen token the target."""
    progress("attribution")
    activations = {name: array[None] for name, array in of.activations.items()}
    block = of.model.blocks[0]
    biased: dict[str, Any] = {"attention_biases": block.attention.out, "mlp_biases": block.mlp.out}
    biased |= {"final_bias": of.model.final_norm}
    lacking = [kind for kind, part in biased.items() if part.bias is None]
    tokens = of.targets.copy()
    tokens[view.token] = view.target
    names: list[str] = []
    values = []
    for position, token in enumerate(tokens):
        asked = Target(of.ids[None], int(token), None, position)
        parts = attribution_of(of.model, asked, of.logits[None], activations)
        parts = {kind: part for kind, part in parts.items() if kind not in lacking}
        names = [name for kind, part in parts.items() for name in _part_names(kind, part.shape)]
        values.append(np.concatenate([part.ravel() for part in parts.values()]))
    logits = np.take_along_axis(of.logits, tokens[:, None], axis=1)[:, 0]
    found = {"tokens": tokens, "logits": logits.astype(np.float64)}
    return found | {"parts": names, "values": np.array(values, np.float32)}


def _part_names(kind: str, shape: tuple[int, ...]) -> list[str]:
    if kind == "heads":
        return [f"layer {layer}, head {head}" for layer, head in np.ndindex(shape)]
    word = PARTS.get(kind, kind.replace("_", " "))
    return [f"layer {layer}, {word}" for layer in range(shape[0])] if shape else [word]


def _report(of: Trace) -> dict[str, Any]:
    report = report_of(of.logits, of.targets, min(REPORT_TOP, of.logits.shape[1]))
    numbers = {"loss": report.loss, "entropy": report.entropy, "logprobs": report.top_logprobs}
    precise = {name: array.astype(np.float64) for name, array in numbers.items()}
    return precise | {"rank": report.rank, "top": report.top_ids}
