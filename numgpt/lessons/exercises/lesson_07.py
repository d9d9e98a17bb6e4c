"""Lesson 7: AdamW, the learning rate, clipping, dropout."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _steps(rng):
    w, g, m = rng.normal(size=(3, 4))
    v = rng.random(4)
    zero = np.zeros(4)
    return [
        (w, g, m, v, 3, 0.1, 0.8, 0.9, 1e-2, 0.5),
        (w, g, zero, zero, 1),
        (w, 1e-4 * g, zero, zero, 1, 0.1, 0.9, 0.99, 1e-3, 0.0),
    ]


def _rates(rng):
    return [(step, 20, 0.1, 0.01, 5) for step in (0, 4, 5, 12, 19)] + [(0, 10, 1.0, 0.0, 0)]


def _gradients(rng):
    return [
        ([3 * rng.normal(size=(2, 3)), rng.normal(size=4)], 1.0),
        ([0.01 * rng.normal(size=(2, 3)), 0.01 * rng.normal(size=4)], 1.0),
        ([np.array([3.0]), np.array([0.1, 0.1])], 0.5),
        ([np.array([1.0, 2.0])], 3.0),
        ([np.zeros(2)], 1.0),
    ]


def _dropped(rng):
    kept = rng.random((3, 5)) >= 0.4
    return [(rng.normal(size=(3, 5)), kept, 0.4), (rng.normal(size=(2, 2)), np.eye(2) > 0, 0.5)]


EXERCISES = (
    Exercise(
        "7.1",
        "adamw",
        _steps,
        (
            Mistake(
                "m_hat, v_hat = m / (1 - beta_1**t), v / (1 - beta_2**t)",
                "m_hat, v_hat = m, v",
                "the moments begin at 0 and are too small at first: divide by 1 - βᵗ.",
            ),
            Mistake(
                "lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)",
                "lr * (m_hat + decay * w) / (np.sqrt(v_hat) + eps)",
                "the decay is divided by √v with the rest: it acts on the weight itself.",
            ),
            Mistake(
                "m = beta_1 * m + (1 - beta_1) * g",
                "g = g + decay * w; m = beta_1 * m + (1 - beta_1) * g; decay = 0",
                "the decay is added to the gradient: there Adam divides it by √v, as everything"
                " else. It acts on the weight itself.",
            ),
            Mistake("np.sqrt(v_hat) + eps", "v_hat + eps", "Adam divides by the root of v̂."),
            Mistake(
                "w = w - lr * decay * w - lr * m_hat / (np.sqrt(v_hat) + eps)",
                "w = w - lr * m_hat / (np.sqrt(v_hat) + eps); w = w - lr * decay * w",
                "nearly: the decay is that of the weight as it was before the step.",
            ),
            Mistake(
                "np.sqrt(v_hat) + eps",
                "np.sqrt(v_hat + eps)",
                "is your epsilon inside the root? In Adam it stands outside.",
            ),
            Mistake(" - lr * decay * w", "", "the weight decay is missing."),
            Mistake(
                "lr * decay * w", "decay * w", "the decay is multiplied by the learning rate, too."
            ),
            Mistake(
                "v = beta_2 * v + (1 - beta_2) * g**2",
                "v = beta_2 * v + (1 - beta_2) * np.abs(g)",
                "v is the running mean of the gradient's square.",
            ),
            Mistake(
                "m / (1 - beta_1**t), v / (1 - beta_2**t)",
                "m / (1 - beta_1), v / (1 - beta_2)",
                "the correction depends on the step: 1 - βᵗ, not 1 - β.",
            ),
        ),
        ("w", "m", "v"),
    ),
    Exercise(
        "7.2",
        "learning_rate",
        _rates,
        (
            Mistake(
                "(step + 1) / warmup",
                "step / warmup",
                "off by one: the first step's rate is 0, a step for nothing.",
            ),
            Mistake(
                "np.cos(np.pi * x)", "np.cos(x)", "half a turn is π: cos(πx) goes from 1 to -1."
            ),
            Mistake(
                "(steps - 1 - warmup)",
                "(steps - warmup)",
                "off by one: the last step is steps - 1, and there the rate is to be the lowest.",
            ),
            Mistake(
                "x = (step - warmup) / (steps - 1 - warmup)",
                "x = step / (steps - 1)",
                "the cosine begins where the warm-up ends, at the highest rate.",
            ),
            Mistake("low + 0.5 * (lr - low)", "0.5 * lr", "the rate ends at `low`, not at 0."),
        ),
    ),
    Exercise(
        "7.3",
        "clip",
        _gradients,
        (
            Mistake(
                "g * scale",
                "g * min(1, limit / max(1e-300, np.sqrt((g**2).sum())))",
                "you clip each array by itself: all of them together are one vector, whose"
                " direction is to stay.",
            ),
            Mistake(
                "limit / norm if norm > limit else 1.0",
                "limit / max(norm, 1e-300)",
                "what is short enough stays as it is: this makes it longer.",
            ),
            Mistake(
                "limit / norm if norm > limit",
                "1 / norm if norm > 1",
                "the limit is an argument: yours is 1 whatever it is.",
            ),
            Mistake(
                "g * scale",
                "np.clip(g, -limit, limit)",
                "that clips each number, and changes the direction: shorten the whole vector.",
            ),
            Mistake(
                "np.sqrt(sum((g**2).sum() for g in gradients))",
                "sum((g**2).sum() for g in gradients)",
                "the norm is the root of the sum of squares.",
            ),
        ),
        ("the list",),
    ),
    Exercise(
        "7.4",
        "dropout_backward",
        _dropped,
        (
            Mistake(
                "dy * kept / (1 - p)",
                "dy * kept",
                "1/(1 - p) is forgotten: forward multiplied by it, so backward does.",
            ),
            Mistake(
                "dy * kept / (1 - p)",
                "dy * (np.random.default_rng(0).random(dy.shape) >= p) / (1 - p)",
                "backward draws a new mask: it has to be the one of forward.",
            ),
            Mistake(
                "dy * kept / (1 - p)",
                "dy * (np.random.default_rng(0).random(dy.shape) >= p)",
                "there are two faults: whose mask is it, and what has forward multiplied by?",
            ),
            Mistake(
                "dy * kept / (1 - p)",
                "dy * kept / p",
                "what is kept is 1 - p of all: p is the part that is dropped.",
            ),
        ),
        ("dx",),
    ),
)
