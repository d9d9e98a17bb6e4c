"""A text as the model reads it: how surprising each token was, and what was expected instead."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from numgpt.insight.notebook import SURPRISING, Cell, percent, piece, table, visible
from numgpt.insight.targets import one_text
from numgpt.layers.softmax import log_softmax, softmax_forward
from numgpt.messages import shown
from numgpt.models.hooks import NamesFilter
from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel
from numgpt.tokenizer import BaseTokenizer


class TokenReport(NamedTuple):
    """Of each token but the first, given all before it; in nats."""

    loss: np.ndarray  # (T - 1,): -log p(token)
    entropy: np.ndarray  # (T - 1,): of the prediction, -Σ p log p
    rank: np.ndarray  # (T - 1,): how many tokens were likelier
    top_ids: np.ndarray  # (T - 1, k): the likeliest
    top_logprobs: np.ndarray  # (T - 1, k)
    ids: np.ndarray | None = None  # (T - 1,): the tokens, which a notebook shows
    tokenizer: BaseTokenizer | None = None  # … with its words in place of ids

    def _repr_html_(self) -> str:
        rows: list[list[Cell]] = []
        for t, loss in enumerate(self.loss.tolist()):
            token = "" if self.ids is None else piece(self.tokenizer, int(self.ids[t]))
            instead = ", ".join(
                f"“{visible(piece(self.tokenizer, int(id)))}” {percent(np.exp(logp))}"
                for id, logp in zip(self.top_ids[t], self.top_logprobs[t], strict=True)
            )
            shade = loss / max(float(self.loss.max()), 1e-9)
            numbers = percent(np.exp(-loss)), f"{self.rank[t] + 1}", f"{self.entropy[t]:.3f}"
            rows.append([visible(token), (f"{loss:.3f}", shade), *numbers, instead])
        heads = ["token", "loss", "p", "rank", "entropy", "likeliest there"]
        caption = "Loss and entropy in nats; the stronger the colour, the more surprising"
        return table(caption, heads, rows, SURPRISING)


def per_token(
    model: LanguageModel, ids: Ids, top: int = 5, tokenizer: BaseTokenizer | None = None
) -> TokenReport:
    """What the model made of each token of a text.  ids (T,), T at least 2; a tokenizer gives their
    words to the table in a notebook."""
    checked = one_text(model, ids)
    if checked.shape[1] < 2:
        raise ValueError("the text has one token: at least two are needed to predict one")
    if not hasattr(top, "__index__") or not 1 <= top <= model.config.vocab_size:
        raise ValueError(f"top={shown(top)}: expected 1 to {model.config.vocab_size}")
    report = report_of(model(checked)[0, :-1], checked[0, 1:], top)
    return report._replace(ids=checked[0, 1:], tokenizer=tokenizer)


def report_of(logits: np.ndarray, targets: np.ndarray, top: int) -> TokenReport:
    """`per_token` of logits that are there (n, V), and the tokens that came (n,)."""
    logp = log_softmax(logits)
    of_tokens = np.take_along_axis(logp, targets[:, None], axis=1)
    top_ids = np.argsort(-logp, axis=1, kind="stable")[:, :top]
    return TokenReport(
        -of_tokens[:, 0],
        -np.vecdot(np.exp(logp), logp),
        (logp > of_tokens).sum(axis=1),
        top_ids,
        np.take_along_axis(logp, top_ids, axis=1),
    )


def loss_dlogits(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """From Σ_t w_t · (-log softmax(z_t)[target_t]) comes dz_t = w_t (p_t - onehot(target_t)).
    logits (B, T, V), targets and weights (T,) -> (B, T, V)."""
    dz = softmax_forward(logits)[0]
    dz[:, np.arange(len(targets)), targets] -= 1
    return dz * weights[:, None].astype(logits.dtype)


def loss_gradients(
    model: LanguageModel, ids: Ids, number: int, names_filter: NamesFilter = None
) -> dict[str, np.ndarray]:
    """The gradient of one token's loss, -log p(ids[number]), by every activation: how much the loss
    grows where each number grows a little. A small step against it makes the token likelier.  By
    the names of hooks, as `run_with_cache` has them."""
    checked = one_text(model, ids)
    if not hasattr(number, "__index__") or not 1 <= number < checked.shape[1]:
        raise ValueError(
            f"number={shown(number)}: the tokens that are predicted are 1 to {checked.shape[1] - 1}"
        )
    weights = np.zeros(checked.shape[1])
    weights[number - 1] = 1
    dlogits = partial(loss_dlogits, targets=np.append(checked[0, 1:], 0), weights=weights)
    return model.run_with_gradients(checked, dlogits, names_filter)[2]
