"""Lesson 12: counting, chunks, fewer bits."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _sizes(rng):
    return [(1024, 768, 12, 50257), (10, 4, 2, 7), (1, 3, 1, 5)]


def _chunks(rng):
    x, weight, targets = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), rng.integers(7, size=5)
    return [(x, weight, targets, 2), (x, weight, targets, 5), (900 * x, weight, targets, 2)]


def _matrices(rng):
    weight = rng.normal(size=(3, 6)) * [[1.0], [10.0], [0.1]]
    zeros = np.array([[0.0, 0, 0], [1, -2.2, 0.6]])
    return [(weight,), (-np.abs(weight),), (zeros,)]


EXERCISES = (
    Exercise(
        "12.1",
        "multiplications",
        _sizes,
        (
            Mistake(
                "3 * C + C + 4 * C + 4 * C",
                "3 * C + 4 * C + 4 * C",
                "attention's own projection, from C to C, is missing.",
            ),
            Mistake(
                "2 * T * T * C",
                "T * T * C",
                "attention has two products: the scores, and the mean of the values.",
            ),
            Mistake(" + T * C * V", "", "the unembedding is missing."),
            Mistake(
                "n_layer * (linear + attention) + T * C * V",
                "n_layer * (linear + attention + T * C * V)",
                "the unembedding is there once, not in each block.",
            ),
        ),
        ("the number",),
    ),
    Exercise(
        "12.2",
        "chunked_cross_entropy",
        _chunks,
        (
            Mistake(
                "dweight += dz.T @ x[part]",
                "dweight = dz.T @ x[part]",
                "only the last chunk's gradient is left: every chunk adds to dweight.",
            ),
            Mistake(
                "dz = dz / N",
                "dz = dz / len(z)",
                "you divide by the rows of a chunk: the mean is over all N rows.",
            ),
            Mistake(
                "log_p[places].sum() / N",
                "log_p[places].mean()",
                "that is a sum of the chunks' means: divide each sum by N.",
            ),
            Mistake(
                "z = z - z.max(axis=1, keepdims=True)",
                "pass",
                "a softmax without its maximum: the exponential of a large logit is infinite.",
            ),
        ),
        ("loss", "dx", "dweight"),
    ),
    Exercise(
        "12.3",
        "to_int8",
        _matrices,
        (
            Mistake(
                "np.abs(weight).max(axis=1, keepdims=True)",
                "np.abs(weight).max() * np.ones((len(weight), 1))",
                "one scale for the whole matrix: each row has its own, else small rows lose their"
                " digits.",
            ),
            Mistake(
                "np.round(weight / np.where(scale > 0, scale, 1))",
                "(weight / np.where(scale > 0, scale, 1))",
                "astype cuts off what is behind the point: round first.",
            ),
            Mistake(
                ".astype(np.int8)",
                "",
                "q has whole numbers, and is to be an array of 8 bits each: astype(np.int8).",
            ),
            Mistake(
                "np.abs(weight).max",
                "weight.max",
                "the largest number may be negative: take the largest absolute value.",
            ),
            Mistake("/ 127", "/ 128", "128 is more than an int8 holds: the largest is 127."),
        ),
        ("q", "scale"),
    ),
)
