"""What attention heads attend to: scores by which known kinds of heads are found.

    previous token     mean over i of p[i, i - 1]
    duplicate token    mean over i of Σ_j p[i, j]        over j < i with the same token as i
    induction          mean over i of Σ_j p[i, j + 1]    over the same j

An induction head (Olsson et al. 2022, arXiv:2209.11895) looks at what followed the present token
last time: "A B … A" makes B likely. The means are over those i that have such a j.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel


class HeadScores(NamedTuple):
    """Attention of each head (L, H) on one kind of place, from 0 to 1; NaN where the text has
    none."""

    previous_token: np.ndarray
    duplicate_token: np.ndarray
    induction: np.ndarray


def repeated_tokens(
    model: LanguageModel, length: int | None = None, batch: int = 4, seed: int = 0
) -> np.ndarray:
    """Random tokens, twice in a row: (B, 2 · length), length up to 24 where none is given. On these
    only heads that copy can predict."""
    most = min(model.context_length // 2, model.config.vocab_size)
    length = min(24, most) if length is None else length
    if not 1 <= length <= most:
        raise ValueError(f"length={length}: expected 1 to {most}, twice that fills the context")
    rng = np.random.default_rng(seed)
    rows = [rng.choice(model.config.vocab_size, length, replace=False) for _ in range(batch)]
    return np.concatenate([np.array(rows)] * 2, axis=1)


def attention_head_scores(model: LanguageModel, ids: Ids | None = None) -> HeadScores:
    """Scores of all heads on a text, ids (T,) or (B, T); without one on random tokens that
    repeat."""
    ids = model.check_ids(repeated_tokens(model) if ids is None else ids)
    time = ids.shape[1]
    earlier = np.tri(time, k=-1, dtype=bool)  # j < i
    previous = np.broadcast_to(np.eye(time, k=-1, dtype=bool), (len(ids), time, time))
    same = ids[:, :, None] == ids[:, None, :]  # (B, i, j)
    duplicate = same & earlier
    induction = np.zeros_like(duplicate)
    induction[:, :, 1:] = duplicate[:, :, :-1]
    patterns = model.attentions(ids)
    return HeadScores(
        *(
            np.stack([_mean_attention(p, places) for p in patterns])
            for places in (previous, duplicate, induction)
        )
    )


def _mean_attention(pattern: np.ndarray, places: np.ndarray) -> np.ndarray:
    """pattern (B, H, T, T), places (B, T, T) -> (H,)."""
    on_places = (pattern * places[:, None]).sum(axis=-1)  # (B, H, T)
    rows = places.any(axis=-1)
    if not rows.any():
        return np.full(pattern.shape[1], np.nan)
    return on_places.transpose(0, 2, 1)[rows].mean(axis=0)
