"""Perplexity of a text of any length, by a window that slides over it.

A model sees n_positions tokens at once. Cutting the text into pieces would make it guess at the
start of each; so the windows overlap, and of each only the tokens count that no window before has
scored, with all that comes before them in the window as context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from numgpt.layers import IGNORE_INDEX
from numgpt.models.language_model import LanguageModel


@dataclass
class Evaluation:
    """What a model makes of a text."""

    tokens: int  # that were predicted: all but the first
    loss: float  # nats a token
    bytes: int  # of the predicted tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.tokens / math.log(2) / self.bytes


def sliding_window_loss(
    model: LanguageModel, ids: np.ndarray, context: int | None = None, stride: int | None = None
) -> float:
    """Mean loss in nats over ids[1:], each predicted from at least context - stride earlier tokens,
    where there are.

    ids (n,); context defaults to the model's n_positions, stride to half of it. Raises ValueError
    for a text of fewer than two tokens, and for a window that can't be.
    """
    longest = model.config.n_positions
    context = longest if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= context <= longest:
        raise ValueError(f"context={context}: expected 1 to the model's n_positions={longest}")
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}: expected 1 to the context of {context}")
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens: at least two are needed to predict one")
    total, scored = 0.0, 0  # scored: how many of ids[1:] have been predicted
    while scored < len(ids) - 1:
        stop = min(context, len(ids) - 1) if scored == 0 else min(scored + stride, len(ids) - 1)
        start = max(0, stop - context)
        targets = np.array(ids[start + 1 : stop + 1], np.int64)
        targets[: scored - start] = IGNORE_INDEX
        total += model.loss(ids[start:stop], targets) * (stop - scored)
        scored = stop
    return total / scored
