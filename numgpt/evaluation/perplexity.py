"""Perplexity of a text of any length, by a window that slides over it.

A model sees context_length tokens at once. Cutting the text into pieces would make it guess at the
start of each; so the windows overlap, and of each only the tokens count that no window before has
scored, with all that comes before them in the window as context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numgpt.layers import IGNORE_INDEX
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError

TOKENS_AT_ONCE = 2048  # of all windows of a batch


@dataclass
class Evaluation:
    """What a model makes of a text."""

    tokens: int  # that were predicted: all but the first
    loss: float  # nats a token
    bytes: int  # of the predicted tokens

    def __repr__(self) -> str:
        return (
            f"<Evaluation: loss {self.loss:.4f} nats a token, perplexity {self.perplexity:.3f},"
            f" {self.bits_per_byte:.4f} bits per byte, {self.tokens:,} tokens>"
        )

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.tokens / math.log(2) / self.bytes


def sliding_window_loss(
    model: LanguageModel,
    ids: np.ndarray,
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda scored: None,
) -> float:
    """Mean loss in nats over ids[1:], each predicted from at least context - stride earlier tokens,
    where there are.

    ids (n,); context defaults to the model's context_length, stride to half of it. Raises
    ValueError for a text of fewer than two tokens, and for a window that can't be.
    """
    longest = model.context_length
    context = longest if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= context <= longest:
        most = f"{model.config.context_field}={longest}"
        raise OptionError("{context}: expected 1 to the model's {0}", most, context=context)
    if not 1 <= stride <= context:
        raise OptionError("{stride}: expected 1 to the context of {0}", context, stride=stride)
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens: at least two are needed to predict one")
    context = min(context, len(ids) - 1)
    windows, scored = [], 0  # (first token, how many are scored already, one behind the last)
    while scored < len(ids) - 1:
        stop = min(context if scored == 0 else scored + stride, len(ids) - 1)
        windows.append((max(0, stop - context), scored, stop))
        scored = stop
    total, at_once = 0.0, max(1, TOKENS_AT_ONCE // context)
    for first in range(0, len(windows), at_once):
        batch = windows[first : first + at_once]
        inputs = np.stack([ids[start : start + context] for start, _, _ in batch])
        targets = np.full(inputs.shape, IGNORE_INDEX)
        for row, (start, done, stop) in zip(targets, batch, strict=True):
            row[done - start : stop - start] = ids[done + 1 : stop + 1]
        total += model.loss(inputs, targets, weights=1.0)
        progress(batch[-1][2])
    return total / scored
