"""How probable given continuations are: what multiple choice and a harness ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numgpt.layers.softmax import log_softmax
from numgpt.messages import shown
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.options import is_list

AT_ONCE = 16  # continuations side by side


class Score(NamedTuple):
    """What a model makes of a continuation."""

    logprob: float  # log P(continuation | context), in nats: the sum of
    token_logprobs: np.ndarray  # (n,): of each token, after all before it
    is_greedy: bool  # whether each token is the most probable one


def score(model: LanguageModel, context: Ids, continuations: Sequence[Ids]) -> list[Score]:
    """log P(continuation | context) of each of several continuations, in all and by token.

    context (S,), continuations: lists of token ids. The context is read once, whatever their
    number. Raises ValueError for what is empty, out of the vocabulary, or together longer than the
    model's context.
    """
    prompt, *others = model.check_ids(context)
    if others:
        raise ValueError(f"the context is {shown(context)}: expected the ids of one text")
    listed = is_list(continuations) and len(continuations) > 0
    if not listed or any(np.ndim(ids) != 1 or len(ids) == 0 for ids in continuations):
        raise ValueError(
            f"the continuations are {shown(continuations)}: expected lists of token ids, [[5], …]"
        )
    checked = [model.check_ids(ids)[0] for ids in continuations]
    longest = max(map(len, checked))
    if len(prompt) + longest - 1 > model.context_length:
        raise ValueError(
            f"a context of {len(prompt)} tokens and a continuation of {longest} are more than the"
            f" model sees at once: {model.config.context_field}={model.context_length}, and the"
            " last token need not be seen; cut the context on the left"
        )
    cache = KVCache(model, 1, len(prompt) + longest - 1)
    if len(prompt) > 1:
        model.hidden(prompt[None, :-1], cache.view(len(prompt) - 1), last_only=True)
    scores = []
    for first in range(0, len(checked), AT_ONCE):
        part = checked[first : first + AT_ONCE]
        counts = np.array([len(ids) for ids in part])
        read = np.zeros((len(part), counts.max()), np.int64)
        read[:, 0] = prompt[-1]
        for row, ids in zip(read, part, strict=True):
            row[1 : len(ids)] = ids[:-1]
        copies = cache if len(part) == 1 else cache.selected([0] * len(part))
        hidden = model.hidden(read, copies.view(counts))
        rows = hidden.reshape(*read.shape, -1)
        scores += [
            _score(model.unembedding.logits(row[: len(ids)]), ids)
            for row, ids in zip(rows, part, strict=True)
        ]
    return scores


def _score(logits: np.ndarray, ids: np.ndarray) -> Score:
    """logits (n, V), each of which predicts the id at its place."""
    logp = log_softmax(logits)[np.arange(len(ids)), ids]
    is_greedy = bool((logits.argmax(axis=1) == ids).all())
    return Score(float(logp.astype(np.float64).sum()), logp, is_greedy)
