"""Lesson 11: lenses, attribution, induction."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _streams(rng):
    return [
        (
            3 + rng.normal(size=(2, 4)),
            rng.normal(size=4),
            rng.normal(size=4),
            rng.normal(size=(6, 4)),
        ),
        (np.ones((1, 4)), rng.normal(size=4), rng.normal(size=4), rng.normal(size=(6, 4))),
        (*(rng.normal(size=size) for size in ((2, 4), 4, 4, (6, 4))), 0.1),
    ]


def _parts(rng):
    parts, weight, direction = 1 + rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=5)
    return [(parts, weight, direction), (parts, weight, direction, 0.1)]


def _patterns(rng):
    patterns = []
    for ids in ([1, 2, 3, 1, 2, 3], [4, 4, 4, 4], [1, 2, 1, 3, 1, 2]):
        scores = np.where(np.tri(len(ids), dtype=bool), rng.normal(size=(len(ids),) * 2), -np.inf)
        e = np.exp(scores)
        patterns.append((e / e.sum(axis=1, keepdims=True), np.array(ids)))
    return patterns


def _terms(rng):
    return [(rng.normal(size=(4, 3)), rng.normal(size=(4, 2))), tuple(rng.normal(size=(2, 3, 3)))]


EXERCISES = (
    Exercise(
        "11.1",
        "logit_lens",
        _streams,
        (
            Mistake(
                "return (weight * x_hat + bias) @ unembedding.T",
                "return stream @ unembedding.T",
                "the last norm is missing: the unembedding reads what it gives.",
            ),
            Mistake("(weight * x_hat + bias)", "(weight * x_hat)", "the norm's bias is missing."),
            Mistake("(weight * x_hat + bias)", "x_hat", "the norm's weight and bias are missing."),
            Mistake(
                "centred = stream - stream.mean(axis=1, keepdims=True)",
                "centred = stream",
                "the mean is not subtracted: this is LayerNorm.",
            ),
        ),
        ("logits",),
    ),
    Exercise(
        "11.2",
        "attribution",
        _parts,
        (
            Mistake(
                "rstd = 1 / np.sqrt(stream.var() + eps)",
                "rstd = 1 / np.sqrt(parts.var(axis=1, keepdims=True) + eps)",
                "each part is divided by its own standard deviation: it is the whole stream's.",
            ),
            Mistake(
                "parts - parts.mean(axis=1, keepdims=True)",
                "parts",
                "the norm subtracts the mean: each part loses its own.",
            ),
            Mistake("weight * centred * rstd", "centred * rstd", "the norm's weight is missing."),
            Mistake(
                "(weight * centred * rstd)",
                "(weight * centred)",
                "the parts add up, but not to the logit: the scale rstd is missing.",
            ),
        ),
        ("the array of parts",),
    ),
    Exercise(
        "11.3",
        "induction_score",
        _patterns,
        (
            Mistake(
                "after[:, 1:] = earlier[:, :-1]",
                "after = earlier",
                "off by one: that is how much it looks at the same id; what counts is what came"
                " after it.",
            ),
            Mistake(
                "(pattern * after)[rows].sum(axis=1).mean()",
                "(pattern * after).sum(axis=1).mean()",
                "the mean is over those queries alone whose id has occurred before.",
            ),
            Mistake(
                "(pattern * after)[rows].sum(axis=1).mean()",
                "(pattern * after)[rows].mean()",
                "sum over the keys, then take the mean over the queries.",
            ),
        ),
        ("the score",),
    ),
    Exercise(
        "11.4",
        "terms_of_gradient",
        _terms,
        (
            Mistake(
                "x[:, :, None] * delta[:, None, :]",
                "x[:, None, :] * delta[:, :, None]",
                "the terms are turned: x's axis comes first, as in W (I, O).",
            ),
            Mistake(
                "x[:, :, None] * delta[:, None, :]",
                "(x[:, :, None] * delta[:, None, :]).sum(axis=0)",
                "that is their sum already: the terms are asked for by themselves.",
            ),
            Mistake(
                "x[:, :, None] * delta[:, None, :]",
                "x[:, :, None] * delta[:, None, :] / len(x)",
                "off by a factor of N: sum or mean?",
            ),
        ),
        ("the array of terms",),
    ),
)
