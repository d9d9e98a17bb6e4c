"""What a question is about: one text, a token at one of its positions, perhaps against another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.messages import shown
from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel


class Target(NamedTuple):
    """logits[position, token] - logits[position, against], or the first alone."""

    ids: np.ndarray  # (1, T)
    token: int
    against: int | None
    position: int  # from 0

    def value(self, logits: np.ndarray) -> np.ndarray:
        """logits (B, T, V) -> (B,)."""
        at = logits[:, self.position]
        return at[:, self.token] - (0 if self.against is None else at[:, self.against])

    def gradient(self, logits: np.ndarray) -> np.ndarray:
        """∂value_b/∂logits (B, T, V): 1 at the token, -1 at the one it is compared with."""
        dlogits = np.zeros_like(logits)
        dlogits[:, self.position, self.token] = 1
        if self.against is not None:
            dlogits[:, self.position, self.against] -= 1
        return dlogits

    def direction(self, model: LanguageModel) -> np.ndarray:
        """∂value/∂(hidden state at the position) (C,): the token's row of the unembedding, less
        that of the other."""
        rows = model.unembedding.weight
        return rows[self.token] - (0 if self.against is None else rows[self.against])


def one_text(model: LanguageModel, ids: Ids) -> np.ndarray:
    """ids as (1, T).  Raises ValueError for several texts, and as `check_ids`."""
    checked = model.check_ids(ids)
    if len(checked) != 1:
        raise ValueError(f"these are the ids of {len(checked)} texts: pass one")
    return checked


def token_id(model: LanguageModel, name: str, id: int) -> int:
    """Raises ValueError for one outside the vocabulary."""
    vocabulary = model.config.vocab_size
    if not hasattr(id, "__index__") or not 0 <= int(id) < vocabulary:
        raise ValueError(f"{name}={shown(id)}: expected a token id below {vocabulary}")
    return int(id)


def target(
    model: LanguageModel, ids: Ids, token: int, against: int | None, position: int
) -> Target:
    """Raises ValueError for a token outside the vocabulary or a position outside the text."""
    checked = one_text(model, ids)
    token = token_id(model, "token", token)
    against = None if against is None else token_id(model, "against", against)
    time = checked.shape[1]
    if not hasattr(position, "__index__") or not -time <= position < time:
        raise ValueError(f"position={shown(position)}: the text has {time} tokens")
    return Target(checked, token, against, int(position) % time)
