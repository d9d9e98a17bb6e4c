"""The logit lens (nostalgebraist 2020): what the model would predict if it stopped early.

Every block adds to the residual stream, and only its end is turned into logits. The lens turns the
stream after each block into logits, in the same way: p_l = softmax(norm(x_l) W_Uᵀ), with the norm's
scale computed again for each x_l. KL(p_l ‖ p) says how far that is from the prediction at the end,

    KL(p_l ‖ p) = Σ_v p_l(v) · (log p_l(v) - log p(v))        in nats
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from numgpt.insight.notebook import Cell, piece, table, visible
from numgpt.layers.softmax import log_softmax
from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel
from numgpt.tokenizer import BaseTokenizer


class LogitLens(NamedTuple):
    """L + 1 states of the stream: before the first block, and after each."""

    names: list[str]  # L + 1 of the hooks
    log_probs: np.ndarray  # (L + 1, B, T, V)
    kl: np.ndarray  # (L + 1, B, T), to the last
    targets: np.ndarray  # (B, T), the likeliest token at the end where none were given
    ranks: np.ndarray  # (L + 1, B, T): how many tokens are likelier than the target
    ids: np.ndarray | None = None  # (B, T), of the text; in a notebook it stands above the table
    tokenizer: BaseTokenizer | None = None  # … with its words in place of ids

    @property
    def probabilities(self) -> np.ndarray:
        """(L + 1, B, T, V)."""
        return np.exp(self.log_probs)

    def _repr_html_(self) -> str:
        """Of the first text, the likeliest token after each block, the last block above."""
        best = self.log_probs[:, 0].argmax(axis=-1)  # (L + 1, T)
        shares = self.probabilities[:, 0].max(axis=-1)
        texts = [piece(self.tokenizer, int(id)) for id in (() if self.ids is None else self.ids[0])]
        rows: list[list[Cell]] = []
        after = ["embedding", *(f"block {layer}" for layer in range(len(best) - 1))]
        for name, ids, sure in zip(after[::-1], best[::-1], shares[::-1], strict=True):
            words = [visible(piece(self.tokenizer, int(id))) for id in ids]
            rows.append([name, *zip(words, map(float, sure), strict=True)])
        caption = "The likeliest next token after each block; the stronger the colour, the surer"
        return table(caption, ["after", *map(visible, texts)], rows)


def logit_lens(
    model: LanguageModel,
    ids: Ids,
    targets: Ids | None = None,
    tokenizer: BaseTokenizer | None = None,
) -> LogitLens:
    """The prediction after each block.  ids (T,) or (B, T); targets, of the same shape, are the
    tokens whose ranks are wanted; a tokenizer gives their words to the table in a notebook.

    Takes (L + 1) · B · T · V numbers: 52 MB for 20 tokens and GPT-2.
    """
    ids = model.check_ids(ids)
    _, streams = model.run_with_cache(ids, lens_names(model))
    return lens_of_streams(model, ids, streams, targets)._replace(ids=ids, tokenizer=tokenizer)


def lens_names(model: LanguageModel) -> list[str]:
    """The hooks on the stream before the first block and after each, L + 1."""
    names = [f"{block.hook_prefix}hook_resid_pre" for block in model.blocks]
    return [*names, f"{model.blocks[-1].hook_prefix}hook_resid_post"]


def lens_of_streams(
    model: LanguageModel,
    ids: np.ndarray,
    streams: Mapping[str, np.ndarray],
    targets: Ids | None = None,
) -> LogitLens:
    """`logit_lens` of activations that are there: those of `lens_names`, (B, T, C) each."""
    names = lens_names(model)
    states = np.stack([streams[name] for name in names])  # (L + 1, B, T, C)
    y, _ = model.final_norm.forward(states.reshape(-1, states.shape[-1]))
    log_probs = log_softmax(model.unembedding.logits(y)).reshape(*states.shape[:-1], -1)
    kl = (np.exp(log_probs) * (log_probs - log_probs[-1])).sum(axis=-1)
    chosen = log_probs[-1].argmax(axis=-1) if targets is None else model.check_ids(targets)
    if chosen.shape != ids.shape:
        raise ValueError(f"targets have shape {chosen.shape}, ids {ids.shape}: make them equal")
    of_targets = np.take_along_axis(log_probs, chosen[None, :, :, None], axis=-1)
    return LogitLens(names, log_probs, kl, chosen, (log_probs > of_targets).sum(axis=-1))
