"""The study of induction heads in benchmarks/: its task, and heads that are induction heads."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import induction


def test_only_what_can_be_known_is_wanted():
    ids, targets = induction.repeating(np.random.default_rng(0), 20)
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        first = next(place for place, target in enumerate(wanted) if target != -100)
        assert induction.SHORTEST <= first <= induction.CONTEXT // 2
        assert -100 not in wanted[first:]
        for place in range(first, induction.CONTEXT):
            assert wanted[place] == row[place + 1 - first]


@pytest.mark.slow
def test_heads_develop_and_copying_ends_without_them():
    history = []
    model = induction.trained(report=lambda *values: history.append(values))
    scores = history[-1][2]
    heads = induction.of_kind(scores.induction)
    assert heads
    assert {layer for layer, _ in heads} == {1}
    assert {layer for layer, _ in induction.of_kind(scores.previous_token)} == {0}
    assert induction.copied(model, []) > 0.95
    assert induction.copied(model, heads) < 0.2
