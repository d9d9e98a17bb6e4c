"""Lesson 9: what Llama changes."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _rows(rng):
    dy, x = rng.normal(size=(2, 3, 5))
    return [(dy, x, rng.normal(size=5)), (dy, 0.001 * x, rng.normal(size=5), 1e-5)]


def _turns(rng):
    angles = np.arange(5)[:, None] * np.array([1.0, 0.1, 0.01])
    return [(rng.normal(size=(5, 6)), angles), (rng.normal(size=(2, 2)), rng.normal(size=(2, 1)))]


def _gates(rng):
    return [tuple(rng.normal(size=(3, 4, 5)))]


def _heads(rng):
    return [(rng.normal(size=(6, 2, 3)), 2), (rng.normal(size=(4, 2, 3)), 4)]


EXERCISES = (
    Exercise(
        "9.1",
        "rmsnorm_backward",
        _rows,
        (
            Mistake(
                "rstd * (g - x_hat",
                "rstd * (g - g.mean(axis=1, keepdims=True) - x_hat",
                "that is LayerNorm's: here no mean is subtracted, so the path through it is gone.",
            ),
            Mistake(
                "(g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))",
                "g",
                "x also changes the number that it is divided by: that way is missing.",
            ),
            Mistake(
                "x_hat, g = x * rstd, dy * weight",
                "x_hat, g = x * rstd, dy",
                "the weight is forgotten: the gradient at x̂ is dy · weight.",
            ),
            Mistake("rstd * (g - x_hat", "(g - x_hat", "the factor r in front is missing."),
            Mistake(
                "(g * x_hat).mean(axis=1",
                "(g * x_hat).sum(axis=1",
                "off by a factor of C: sum or mean?",
            ),
            Mistake(
                "(g * x_hat).mean(axis=1",
                "(g * x).mean(axis=1",
                "inside of the mean stands x̂, not x.",
            ),
            Mistake(
                "(dy * x_hat).sum(axis=0)",
                "(dy * x).sum(axis=0)",
                "the weight multiplies x̂, not x.",
            ),
            Mistake(
                "1 / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps)",
                "1 / (np.sqrt((x**2).mean(axis=1, keepdims=True)) + eps)",
                "is your epsilon inside the root?",
            ),
        ),
        ("dx", "dweight"),
    ),
    Exercise(
        "9.2",
        "rope",
        _turns,
        (
            Mistake(
                "x1 * cos - x2 * sin, x1 * sin + x2 * cos",
                "x1 * cos + x2 * sin, x2 * cos - x1 * sin",
                "that turns the other way round: look at the signs.",
            ),
            Mistake(
                "x1, x2 = np.split(x, 2, axis=1)",
                "x1, x2 = x[:, ::2], x[:, 1::2]",
                "you pair neighbours, as the paper does: here feature i of the first half goes with"
                " feature i of the second.",
            ),
            Mistake(
                "return np.hstack([x1 * cos - x2 * sin, x1 * sin + x2 * cos])",
                "x1, x2 = x[:, ::2], x[:, 1::2]; y = np.empty_like(x);"
                " y[:, ::2] = x1 * cos - x2 * sin; y[:, 1::2] = x1 * sin + x2 * cos; return y",
                "you pair neighbours, as the paper does: here feature i of the first half goes with"
                " feature i of the second, in the result as well.",
            ),
            Mistake(
                "return np.hstack([x1 * cos - x2 * sin, x1 * sin + x2 * cos])",
                "x1 = x1 * cos - x2 * sin; return np.hstack([x1, x1 * sin + x2 * cos])",
                "x1 has been overwritten before the second half used it.",
            ),
            Mistake(
                "x1 * cos - x2 * sin, x1 * sin + x2 * cos",
                "x1 * cos - x2 * sin, x1 * sin - x2 * cos",
                "that is a reflection: the length stays, but not the angle. Look at the signs.",
            ),
        ),
        ("y",),
    ),
    Exercise(
        "9.3",
        "rope_backward",
        _turns,
        (
            Mistake(
                "rope(dy, -angles)",
                "rope(dy, angles)",
                "RoPE is turned the wrong way in backward: the transpose of a rotation turns back.",
            ),
            Mistake(
                "rope(dy, -angles)",
                "-rope(dy, angles)",
                "the gradient is not the negative of a rotation: the angle is.",
            ),
            Mistake("rope(dy, -angles)", "dy", "dy has to be turned as well: back."),
        ),
        ("dx",),
    ),
    Exercise(
        "9.4",
        "swiglu_backward",
        _gates,
        (
            Mistake(
                "s * (1 + gate * (1 - s))",
                "s * (1 - s)",
                "that is the slope of σ alone: silu is z σ(z), a product.",
            ),
            Mistake(
                "s * (1 + gate * (1 - s))",
                "s",
                "the product rule has two terms: σ changes with the gate, too.",
            ),
            Mistake(
                "dy * up * s", "dy * s", "the factor up is missing: the gate is multiplied with it."
            ),
            Mistake(
                "dy * gate * s",
                "dy * gate",
                "up is multiplied with silu(gate), the gate as it is bent.",
            ),
            Mistake(
                "dy * gate * s", "dy * s", "up is multiplied with silu(gate) = gate · σ(gate)."
            ),
            Mistake(
                "return dy * up * s * (1 + gate * (1 - s)), dy * gate * s",
                "return dy * gate * s, dy * up * s * (1 + gate * (1 - s))",
                "the two are exchanged: dgate comes first.",
            ),
        ),
        ("dgate", "dup"),
    ),
    Exercise(
        "9.5",
        "shared_backward",
        _heads,
        (
            Mistake(
                ".sum(axis=1)",
                ".mean(axis=1)",
                "off by a factor of the group's size: sum or mean? Ways add up.",
            ),
            Mistake(
                ".sum(axis=1)",
                "[:, 0]",
                "only the first head of each group is counted: all of them use the key.",
            ),
            Mistake(
                "dk.reshape(kv_heads, H // kv_heads, T, D).sum(axis=1)",
                "dk.reshape(H // kv_heads, kv_heads, T, D).sum(axis=0)",
                "query head h uses KV head h // G, not h % K: the heads of a group are neighbours.",
            ),
        ),
        ("the gradient",),
    ),
)
