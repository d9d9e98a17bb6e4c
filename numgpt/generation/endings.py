"""What ends a text, beside its length: a token that says so, other texts, going in circles."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from numgpt.generation.options import GenerationOptions

STOP_WINDOW = 4  # how many tokens more than a stop string has bytes are decoded to look for it
# A loop: the last tokens are some, at most this many, over and over; this many in all, and each
# of them this often.
LONGEST_LOOP, LOOP_TOKENS, LOOP_TIMES = 64, 64, 4


def ends_with(
    made: Sequence[int] | np.ndarray, eos_token_ids: Collection[int], options: GenerationOptions
) -> bool:
    """Whether the newest of the tokens made ends the sequence, by itself or as the last of a stop
    string."""
    if made[-1] in eos_token_ids:
        return True
    if not options.stop_strings:
        return False
    assert options.tokenizer is not None  # validate() has seen to it
    longest = max(len(stop.encode()) for stop in options.stop_strings)
    tail = options.tokenizer.decode(made[-(longest + STOP_WINDOW) :])
    return any(stop in tail for stop in options.stop_strings)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before a stop string, and whether one is there; without what may be the beginning of
    one."""
    places = [text.find(stop) for stop in stops if stop in text]
    if places:
        return text[: min(places)], True
    for length in range(max(map(len, stops), default=1) - 1, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops) and len(text) >= length:
            return text[:-length], False
    return text, False


def goes_in_circles(ids: Sequence[int]) -> bool:
    """Whether the last tokens are the same few over and over."""
    for period in range(1, min(LONGEST_LOOP, len(ids) // LOOP_TIMES) + 1):
        if ids[-1] == ids[-1 - period]:  # as a rule not, and then this is all
            span = max(LOOP_TOKENS, LOOP_TIMES * period)
            if len(ids) >= span and ids[-span:-period] == ids[period - span :]:
                return True
    return False
