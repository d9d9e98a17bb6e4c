"""Lesson 8: drawing, and keys and values that are kept."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _darts(rng):
    p = np.array([0.0, 0.5, 0.0, 0.25, 0.25])
    return [(p, u) for u in (0.0, 0.3, 0.5, 0.6, 0.75, 0.99)]


def _logits(rng):
    z = rng.normal(size=6)
    return [(z, 0.5), (z, 2.0), (5000 * z, 1.0)]


def _nuclei(rng):
    p = rng.permutation([0.5, 0.3, 0.15, 0.05])
    border = np.array([0.25, 0.5, 0.25])
    return [(p, 0.7), (p, 0.4), (p, 0.9), (p, 1.0), (border, 0.5)]


def _positions(rng):
    return [
        (*rng.normal(size=(3, 4)), *rng.normal(size=(2, 5, 4))),
        (*rng.normal(size=(3, 9)), np.empty((0, 9)), np.empty((0, 9))),
        (*(40 * rng.normal(size=(3, 4))), *(40 * rng.normal(size=(2, 5, 4)))),
    ]


EXERCISES = (
    Exercise(
        "8.1",
        "draw",
        _darts,
        (
            Mistake(
                'side="right"',
                'side="left"',
                "on a border you take the id to its left, which may have the probability 0: the"
                " sum has to be greater than u.",
            ),
            Mistake(
                'np.searchsorted(np.cumsum(p), u, side="right")',
                "np.argmax(p)",
                "that is the likeliest id, whatever u is: draw one.",
            ),
            Mistake(
                'np.searchsorted(np.cumsum(p), u, side="right")',
                "u * len(p)",
                "that draws every id with the same probability.",
            ),
        ),
    ),
    Exercise(
        "8.2",
        "with_temperature",
        _logits,
        (
            Mistake(
                "z = z / temperature",
                "z = z * temperature",
                "a temperature below 1 is to make it bolder: divide by it.",
            ),
            Mistake(
                "return e / e.sum()",
                "return e / e.sum() / temperature",
                "the sum is no longer 1: divide the logits, before the softmax.",
            ),
            Mistake(
                "np.exp(z - z.max())",
                "np.exp(z)",
                "the exponential of a large logit is infinite: subtract the largest first.",
            ),
            Mistake(
                "z = z / temperature",
                "z = z - temperature",
                "taking the same from all logits changes nothing: divide.",
            ),
        ),
        ("p",),
    ),
    Exercise(
        "8.3",
        "top_p",
        _nuclei,
        (
            Mistake(
                "order[before < share]",
                "order[before + p[order] <= share]",
                "off by one: the id that reaches the share is kept, too (and the likeliest one"
                " always).",
            ),
            Mistake("chosen = order[before < share]", "chosen = order", "nothing is cut off."),
            Mistake(
                "before < share",
                "before <= share",
                "one too many: as soon as the share is reached, the rest is cut off.",
            ),
            Mistake(
                "np.argsort(-p)",
                "np.argsort(p)",
                "you keep the least likely ones: sort from the likeliest on.",
            ),
            Mistake("return kept / kept.sum()", "return kept", "the sum is no longer 1."),
            Mistake(
                "kept[chosen] = p[chosen]",
                "kept[chosen] = 1.0",
                "those that are kept keep their probabilities, relative to each other.",
            ),
        ),
        ("p",),
    ),
    Exercise(
        "8.4",
        "attend_one",
        _positions,
        (
            Mistake(
                "s = keys @ q / np.sqrt(len(q))\n    p = np.exp(s - s.max())\n"
                "    return p @ values / p.sum()",
                "s = keys[:-1] @ q / np.sqrt(len(q))\n    p = np.exp(s - s.max(initial=0))\n"
                "    return p @ values[:-1] / max(p.sum(), 1e-300)",
                "the new position sees itself, too: take its key in before you attend.",
            ),
            Mistake(
                "keys @ q / np.sqrt(len(q))", "keys @ q", "the scores are to be divided by √D."
            ),
            Mistake(
                "keys @ q / np.sqrt(len(q))",
                "keys @ q / np.sqrt(len(keys))",
                "divide by √D, the length of a query, not by the number of keys.",
            ),
            Mistake(
                "np.exp(s - s.max())",
                "np.exp(s)",
                "the exponential of a large score is infinite: subtract the largest first.",
            ),
            Mistake(
                "np.vstack([values, v])",
                "np.vstack([v, values])",
                "the new value belongs at the end, where its key is.",
            ),
        ),
        ("y", "keys", "values"),
    ),
)
