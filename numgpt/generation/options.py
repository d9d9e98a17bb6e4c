"""What a request for text can ask for: transformers' names, meanings and defaults."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

from numgpt.tokenizer import BaseTokenizer

DEFAULT_NEW_TOKENS = 20


@dataclass
class GenerationOptions:
    """Options of `generate` and `stream`."""

    max_length: int | None = None  # tokens in all, the prompt's included
    max_new_tokens: int | None = (
        None  # tokens beyond the prompt; goes before max_length; 20 without either
    )
    min_length: int = 0
    min_new_tokens: int = 0  # the end-of-text token can't come before
    do_sample: bool = False  # False: always the most likely token (greedy)
    temperature: float = 1.0  # logits are divided by it
    top_k: int | None = 50  # only the k most likely tokens; None or 0: all
    top_p: float | None = None  # only the most likely tokens that together reach this probability
    min_p: float | None = (
        None  # only tokens at least this probable, relative to the most likely one
    )
    repetition_penalty: float = 1.0  # above 1: tokens that are there already become less likely
    bad_words_ids: Sequence[Sequence[int]] = ()  # token sequences that must not occur
    num_return_sequences: int = 1
    eos_token_id: int | Sequence[int] | None = None  # ends a sequence; None: the model's own
    pad_token_id: int | None = (
        None  # fills up sequences that have ended; None: the end-of-text token
    )
    stop_strings: (
        str | Sequence[str]
    ) = ()  # end a sequence once its text contains one; needs `tokenizer`
    tokenizer: BaseTokenizer | None = None  # where given, only ids that it knows are chosen
    seed: int | None = None  # of the sampling; None: different every time

    def validate(self, vocab_size: int) -> None:
        """Raises ValueError naming the option, its value and what it may be."""

        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            require(
                value is None or (_whole(value) and value >= 1), name, "a whole number from 1 up"
            )
        for name in ("min_length", "min_new_tokens", "top_k"):
            value = getattr(self, name)
            if name == "top_k" and value is None:
                continue
            require(_whole(value) and value >= 0, name, "a whole number from 0 up")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            optional = name in ("top_p", "min_p") and value is None
            require(optional or isinstance(value, numbers.Real), name, "a number")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature!r}: expected a number above 0;"
                " for the most likely token every time, turn sampling off (do_sample=False)"
            )
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "0 < top_p <= 1")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "0 <= min_p <= 1")
        require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "a number above 0")
        possible = self.seed is None or (_whole(self.seed) and self.seed >= 0)
        require(possible, "seed", "a whole number from 0 up")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than"
                f" max_new_tokens={self.max_new_tokens}"
            )
        value = self.num_return_sequences
        require(_whole(value) and value >= 1, "num_return_sequences", "a whole number from 1 up")
        for word in self.bad_words_ids:
            require(
                len(word) > 0 and all(0 <= id < vocab_size for id in word),
                "bad_words_ids",
                f"non-empty sequences of token ids below {vocab_size}",
            )
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = [] if value is None else [value] if _whole(value) else list(value)
            require(all(0 <= id < vocab_size for id in ids), name, f"token ids below {vocab_size}")
        if isinstance(self.stop_strings, str):
            self.stop_strings = (self.stop_strings,)
        require(all(self.stop_strings), "stop_strings", "texts that are not empty")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings are compared with text: pass tokenizer=... as well")


def _whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
