"""Prompts of equal or unequal length, as lists or arrays, checked and padded on the left."""

from __future__ import annotations

import collections.abc as abc
from typing import NamedTuple

import numpy as np

from numgpt.generation.options import GenerationOptions, eos_and_pad
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.reading import about


class Prompts(NamedTuple):
    """The prompts of one call."""

    padded: np.ndarray  # (B, T)
    seen: np.ndarray  # (B, T), as processors see them: -1 at padding
    each: list[np.ndarray]  # by themselves: what is padding is no token, wherever it stands

    @classmethod
    def of(
        cls, model: LanguageModel, ids: Ids, attention_mask: Ids | None, options: GenerationOptions
    ) -> Prompts:
        """Raises ValueError for a prompt, or a mask, that is invalid."""
        ids, mask = _pad_left(model, ids, attention_mask, eos_and_pad(model, options)[1])
        padded = model.check_ids(ids, any_length=options.slide)
        mask = _check_mask(mask, padded)
        each = [row[real] for row, real in zip(padded, mask, strict=True)]
        return cls(padded, np.where(mask, padded, -1), each)


def _pad_left(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None, pad_token_id: int
) -> tuple[Ids, Ids | None]:
    """Prompts of unequal length -> rows of equal length and the mask of what is no padding."""
    listed = isinstance(ids, abc.Sequence) and all(hasattr(row, "__len__") for row in ids)
    rows = [row for row in ids if isinstance(row, (abc.Sequence, np.ndarray))] if listed else []
    if len({len(row) for row in rows}) < 2:
        return ids, attention_mask
    if attention_mask is not None:
        raise ValueError(
            "attention_mask goes with prompts of equal length; unequal ones are padded by generate"
        )
    width = max(map(len, rows))
    padded = np.full((len(rows), width), pad_token_id, np.int64)
    mask = np.zeros((len(rows), width), bool)
    for number, (target, real, row) in enumerate(zip(padded, mask, rows, strict=True)):
        with about(f"prompt {number}"):
            target[width - len(row) :] = model.check_ids(row, any_length=True)
        real[width - len(row) :] = True
    return padded, mask


def _check_mask(mask: Ids | None, ids: np.ndarray) -> np.ndarray:
    """(B, T) bool, False at padding."""
    if mask is None:
        return np.ones(ids.shape, bool)
    mask = np.atleast_2d(np.asarray(mask)).astype(bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {mask.shape}, ids {ids.shape}: they must be equal"
        )
    if not mask[:, -1].all():
        raise ValueError("attention_mask marks a prompt's last token as padding: pad on the left")
    return mask
