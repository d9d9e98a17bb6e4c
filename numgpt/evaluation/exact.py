"""Exact match: how many answers a model gives word for word, by the likeliest token each time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from numgpt.data.examples import Example, last_answer
from numgpt.generation import generate_each
from numgpt.models.language_model import LanguageModel
from numgpt.tokenizer import BaseTokenizer

MOST_TOKENS = 80  # of an answer that is asked for
AT_ONCE = 8  # prompts


@dataclass(frozen=True)
class ExactMatch:
    """How many of the answers that were asked for came exactly."""

    exact: int
    asked: int

    def __str__(self) -> str:
        return f"{self.exact} of {self.asked}"


def questions(
    examples: Iterable[Example], ends: Collection[int], most: int, most_tokens: int = MOST_TOKENS
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts (t,) and answers (a,) of the first `most` examples whose last answer has no more than
    so many tokens."""
    found = (last_answer(example, ends) for example in examples)
    short = (pair for pair in found if pair is not None and len(pair[1]) <= most_tokens)
    return [pair for pair, _ in zip(short, range(most), strict=False)]


def exact_match(
    model: LanguageModel,
    tokenizer: BaseTokenizer,
    asked: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    ends: Collection[int],
    progress: Callable[[int], object] = lambda done: None,
) -> ExactMatch:
    """Continue each prompt greedily, and count the answers that have the text of the one expected,
    and end where it does.  ends: the tokens that end an answer; progress is called with how many
    prompts are done."""
    exact = 0
    ordered = sorted(asked, key=lambda pair: len(pair[1]))  # so that little is made in vain
    for first in range(0, len(ordered), AT_ONCE):
        part = ordered[first : first + AT_ONCE]
        made = generate_each(
            model,
            [np.asarray(prompt).tolist() for prompt, _ in part],
            max_new_tokens=max(len(answer) for _, answer in part),
            eos_token_id=sorted(ends),
            generation_config={},  # the likeliest token, whatever the model's files say
            tokenizer=tokenizer,
            slide=True,
        )
        for ids, (prompt, answer) in zip(made, part, strict=True):
            expected, expects_end = _until(np.asarray(answer), ends)
            given, ended = _until(ids[len(prompt) :][: len(answer)], ends)
            same = tokenizer.decode(given) == tokenizer.decode(expected)
            exact += same and ended == expects_end
        progress(first + len(part))
    return ExactMatch(exact, len(ordered))


def _until(ids: np.ndarray, ends: Collection[int]) -> tuple[list[int], bool]:
    """The tokens before the first end, and whether there is one."""
    before = list(takewhile(lambda id: id not in ends, ids.tolist()))
    return before, len(before) < len(ids)
