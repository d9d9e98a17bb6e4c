"""Scores: what the score head makes of hidden states, one number a position.

Of a reward model the last token's is what a text is worth; of a value model each is what it expects
of what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from numgpt.models.inputs import Ids
from numgpt.models.modules import ScoreHead
from numgpt.models.parameters import Gradients

if TYPE_CHECKING:
    from numgpt.models.language_model import LanguageModel

# scores (B,) -> loss, dscores (B,), metrics
ScoreObjective = Callable[[np.ndarray], tuple[float, np.ndarray, dict[str, float]]]


def head_of(model: LanguageModel) -> ScoreHead:
    """Raises ValueError for a model without one."""
    if model.score_head is None:
        raise ValueError("the model has no score head: add_score_head, or load a reward model")
    return model.score_head


def values(model: LanguageModel, ids: Ids) -> np.ndarray:
    """The score at every position.  ids (T,) or (B, T) -> (B, T)."""
    head, ids = head_of(model), model.check_ids(ids)
    return head.scores(model.hidden(ids)).reshape(ids.shape)


def scores(model: LanguageModel, texts: Sequence[Ids]) -> np.ndarray:
    """The score of each text (n,), of which each may have another length, at its last token; the
    pad_token_id of the config at its end does not count, as in transformers.  -> (B,)"""
    head = head_of(model)
    ids, rows = _padded(model, texts)
    return head.scores(model.hidden(ids)[rows])


def scores_and_grads(
    model: LanguageModel,
    texts: Sequence[Ids],
    objective: ScoreObjective,
    rng: np.random.Generator | None = None,
    *,
    add_to: Gradients | None = None,
) -> tuple[float, Gradients, dict[str, float]]:
    """Value, gradients and metrics of an objective of the texts' scores, as `scores` has them; the
    rest is as in `value_and_grads`."""
    head = head_of(model)
    ids, rows = _padded(model, texts)
    with model.sums(add_to) as g:
        hidden, back = model.run(ids, rng)
        loss, dscores, metrics = objective(head.scores(hidden[rows]))
        dhidden = np.zeros_like(hidden)
        dhidden[rows] = head.backward(dscores.astype(hidden.dtype), hidden[rows], g)
        back(dhidden, g)
    return float(loss), g, metrics


def _padded(model: LanguageModel, texts: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """Texts side by side (B, T), and the rows (B,) of the hidden states at their last tokens."""
    each = [model.check_ids(text)[0] for text in texts]
    ids = np.zeros((len(each), max(map(len, each))), np.int64)
    for row, text in zip(ids, each, strict=True):
        row[: len(text)] = text
    pad = model.config.pad_token_id  # no token equals None
    last = [max(np.flatnonzero(text != pad), default=0) for text in each]
    return ids, np.arange(len(each)) * ids.shape[1] + np.array(last)
