"""Lesson 5: attention."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _heads(rng):
    on_paper = np.array([[1.0, 0, 1], [0, 1, np.log(2)], [3, 6, 9]])[..., None]
    return [
        tuple(rng.normal(size=(3, 5, 4))),
        tuple(on_paper),
        tuple(30 * rng.normal(size=(3, 4, 9))),
    ]


def _backward(rng):
    cases = []
    for size in (4, 9):
        q, k, v, dy = rng.normal(size=(4, 5, size))
        s = np.where(np.tri(5, dtype=bool), q @ k.T / np.sqrt(size), -np.inf)
        cases.append((dy, q, k, v, np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)))
    return cases


def _features(rng):
    return [
        (rng.normal(size=(4, 6)), 3),
        (rng.normal(size=(3, 3)), 3),
        (rng.normal(size=(2, 4)), 1),
    ]


def _tiles(rng):
    y1, y2 = rng.normal(size=(2, 4, 3))
    m1, m2, z1, z2 = rng.normal(size=(4, 4, 1))
    high = m1 + 800  # e^800 is more than a float holds
    z1, z2 = 1 + z1**2, 1 + z2**2
    hidden = np.array([[0.0], [0], [1], [1]]) > 0, np.array([[0.0], [1], [0], [1]]) > 0
    n1, n2 = np.where(hidden[0], -np.inf, m1), np.where(hidden[1], -np.inf, m2)
    w1, w2 = np.where(hidden[0], 0, z1), np.where(hidden[1], 0, z2)
    x1, x2 = np.where(hidden[0], 0, y1), np.where(hidden[1], 0, y2)
    return [(y1, m1, z1, y2, m2, z2), (y1, high, z1, y2, m2 + 800, z2), (x1, n1, w1, x2, n2, w2)]


EXERCISES = (
    Exercise(
        "5.1",
        "attention",
        _heads,
        (
            Mistake(
                "np.tri(T, dtype=bool)",
                "np.tri(T, k=1, dtype=bool)",
                "your mask is off by one: a query sees the key that comes right after it.",
            ),
            Mistake(
                "np.tri(T, dtype=bool)",
                "(np.tri(T, k=-1) + (np.arange(T) == 0)[:, None] * np.eye(T) > 0)",
                "your mask is off by one: a position sees itself, too.",
            ),
            Mistake(
                "np.tri(T, dtype=bool)",
                "np.tri(T, dtype=bool).T",
                "the mask is turned round: a query sees those that come after it.",
            ),
            Mistake(
                "np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(D), -np.inf)",
                "q @ k.T / np.sqrt(D)",
                "nothing is hidden: a query sees the keys that come after it.",
            ),
            Mistake(
                "np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(D), -np.inf)",
                "np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(D), 0)",
                "a hidden score has to be -∞: 0 has the weight e⁰ = 1, and even e⁻¹⁰⁰ is not 0.",
            ),
            Mistake(
                "np.tri(T, dtype=bool)",
                "np.tri(T, k=-1, dtype=bool)",
                "your mask is off by one: a position sees itself, too. (The first one would see"
                " nothing at all: NaN.)",
            ),
            Mistake(
                "s - s.max(axis=1, keepdims=True)",
                "s",
                "a softmax without its maximum: the exponential of a large score is infinite.",
            ),
            Mistake(
                "p.sum(axis=1, keepdims=True)",
                "p.sum(axis=1)",
                "keepdims=True is missing: NumPy then divides columns by the sums of rows.",
            ),
            Mistake("q @ k.T / np.sqrt(D)", "q @ k.T", "the scores are to be divided by √D."),
            Mistake("q @ k.T / np.sqrt(D)", "q @ k.T / D", "divide by √D, not by D."),
            Mistake(
                "p.sum(axis=1, keepdims=True)",
                "p.sum(axis=0, keepdims=True)",
                "the softmax is along the keys: each row has the sum 1.",
            ),
        ),
        ("y", "p"),
    ),
    Exercise(
        "5.2",
        "attention_backward",
        _backward,
        (
            Mistake("dv = p.T @ dy", "dv = p @ dy", "is a transpose missing? dV = Pᵀ dY."),
            Mistake(
                "scale * ds.T @ q",
                "scale * ds @ q",
                "is a transpose missing? dK = dSᵀ Q: what reaches a key comes from all queries.",
            ),
            Mistake(
                "scale * ds @ k", "ds @ k", "S = Q Kᵀ/√D, so dQ and dK are divided by √D, too."
            ),
            Mistake(
                "scale * ds.T @ q", "ds.T @ q", "S = Q Kᵀ/√D, so dQ and dK are divided by √D, too."
            ),
            Mistake(
                "p * (dp - (dp * p).sum(axis=1, keepdims=True))",
                "p * dp",
                "the softmax's backward subtracts the row sums of dP ⊙ P.",
            ),
            Mistake("dp = dy @ v.T", "dp = v @ dy.T", "is a transpose missing? dP = dY Vᵀ."),
            Mistake(
                "(dp * p).sum(axis=1, keepdims=True)",
                "(dp * p).sum(axis=1)",
                "keepdims=True is missing: NumPy then subtracts the sums of rows from columns.",
            ),
            Mistake(
                "(dp * p).sum(axis=1, keepdims=True)",
                "(dp * p).sum(axis=0, keepdims=True)",
                "the sums are those of rows: the softmax was along axis 1.",
            ),
        ),
        ("dq", "dk", "dv"),
    ),
    Exercise(
        "5.3",
        "split_heads",
        _features,
        (
            Mistake(
                "x.reshape(T, heads, C // heads).transpose(1, 0, 2)",
                "x.reshape(heads, T, C // heads)",
                "a plain reshape mixes positions: cut the last axis first, then exchange.",
            ),
            Mistake(
                "x.reshape(T, heads, C // heads).transpose(1, 0, 2)",
                "x.reshape(T, C // heads, heads).transpose(2, 0, 1)",
                "each head should have D features that are neighbours: yours has every H-th one.",
            ),
            Mistake(
                ".transpose(1, 0, 2)", "", "the axes are (T, H, D): bring the heads to the front."
            ),
        ),
    ),
    Exercise(
        "5.4",
        "join_tiles",
        _tiles,
        (
            Mistake(
                "a, b = z1 * np.exp(m1 - safe), z2 * np.exp(m2 - safe)",
                "a, b = z1, z2",
                "the two sums belong to different maxima: bring both to the new one first.",
            ),
            Mistake(
                "(a * y1 + b * y2) / np.where(z > 0, z, 1)",
                "(y1 + y2) / 2",
                "that is the plain mean: each side counts by its sum.",
            ),
            Mistake(
                "(a * y1 + b * y2) / np.where(z > 0, z, 1)",
                "a * y1 + b * y2",
                "y is a mean already: divide by the sum of the weights.",
            ),
            Mistake(
                "z1 * np.exp(m1 - safe), z2 * np.exp(m2 - safe)",
                "z1 * np.exp(safe - m1), z2 * np.exp(safe - m2)",
                "the exponent's sign: a sum with a lower maximum gets smaller, by e^(M - new M).",
            ),
            Mistake(
                "safe = np.where(np.isinf(m), 0, m)",
                "safe = m",
                "where all is hidden, M is -∞, and -∞ - (-∞) is no number.",
            ),
            Mistake(
                "/ np.where(z > 0, z, 1)",
                "/ z",
                "where all is hidden, the sum is 0, and 0/0 is no number.",
            ),
            Mistake(
                "z1 * np.exp(m1 - safe), z2 * np.exp(m2 - safe)",
                "z1 * np.exp(m1), z2 * np.exp(m2)",
                "a score of 800 has no exponential that a computer can hold: subtract the new"
                " maximum.",
            ),
        ),
        ("y", "m", "z"),
    ),
)
