"""What ends an answer: loops, but no mere repetition."""

from __future__ import annotations

import random

import pytest

from numgpt.generation.endings import LOOP_TIMES, LOOP_TOKENS, goes_in_circles

BEFORE = list(range(1000, 1050))


@pytest.mark.parametrize("period", [1, 2, 7, 16, 20, 64])
def test_a_loop_is_seen_once_it_has_gone_round_often_enough(period):
    loop = list(range(period))
    needed = max(LOOP_TOKENS, LOOP_TIMES * period)
    ids = BEFORE + (loop * needed)[:needed]
    assert goes_in_circles(ids)
    assert goes_in_circles(ids[len(BEFORE) :])
    assert not goes_in_circles(ids[:-1])


def test_what_varies_is_no_loop():
    assert not goes_in_circles([])
    assert not goes_in_circles([1])
    rng = random.Random(0)
    assert not goes_in_circles([rng.randrange(2) for _ in range(500)])
    counting = [part for number in range(200) for part in (number + 10, 1, 2, 3)]
    assert not goes_in_circles(counting)
    assert not goes_in_circles([1] * 500 + [2])
    assert not goes_in_circles(list(range(65)) * 8)  # longer than what counts as one
