"""What a call of generate asks for, checked: prompts of equal or unequal length, and options."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import warnings

import numpy as np

from numgpt.generation.options import GenerationOptions, eos_and_pad
from numgpt.messages import shown
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.options import OptionWarning


class Request:
    """Prompts and options that fit the model and each other."""

    def __init__(
        self,
        model: LanguageModel,
        ids: Ids,
        attention_mask: Ids | None,
        options: GenerationOptions,
    ):
        """Raises ValueError for a prompt or an option that is invalid."""
        options.validate(model.config.vocab_size)
        self.eos_token_ids, self.pad_token_id = eos_and_pad(model, options)
        ids, mask = _pad_left(ids, attention_mask, self.pad_token_id)
        self.ids = model.check_ids(ids, any_length=options.slide)  # (B, T)
        self.mask = _check_mask(mask, self.ids)  # (B, T), False at padding
        # What is padding is no token of the prompt, wherever it stands.
        self.prompts = [row[real] for row, real in zip(self.ids, self.mask, strict=True)]
        self.shown = np.where(self.mask, self.ids, -1)  # … as processors see them
        self.prompt_length = self.ids.shape[1]
        if not options.do_sample and options.num_return_sequences > options.num_beams:
            warnings.warn(
                OptionWarning(
                    "{num_return_sequences} without {do_sample}: greedy decoding makes the same"
                    " sequence each time",
                    num_return_sequences=options.num_return_sequences,
                    do_sample=True,
                ),
                stacklevel=4,
            )
        # The lengths count from the longest prompt, padding included.
        self.least, self.most = options.limits(self.prompt_length)
        self.model = model
        self.options = dataclasses.replace(
            options, min_length=0, min_new_tokens=self.least, max_new_tokens=self.most
        )


def _pad_left(ids: Ids, attention_mask: Ids | None, pad_token_id: int) -> tuple[Ids, Ids | None]:
    """Prompts of unequal length -> rows of equal length and the mask of what is no padding."""
    listed = isinstance(ids, abc.Sequence) and all(hasattr(row, "__len__") for row in ids)
    rows = [row for row in ids if isinstance(row, (abc.Sequence, np.ndarray))] if listed else []
    if len({len(row) for row in rows}) < 2:
        return ids, attention_mask
    if attention_mask is not None:
        raise ValueError(
            "attention_mask goes with prompts of equal length; unequal ones are padded by generate"
        )
    for number, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if np.asarray(row).dtype.kind not in "iu":
            raise ValueError(f"prompt {number} is {shown(row)}: token ids are integers")
    width = max(map(len, rows))
    padded = np.full((len(rows), width), pad_token_id, np.int64)
    mask = np.zeros((len(rows), width), bool)
    for target, real, row in zip(padded, mask, rows, strict=True):
        target[width - len(row) :] = row
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
