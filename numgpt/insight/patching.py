"""Which activations matter: patched from another run, or taken out (Meng et al. 2022,
arXiv:2202.05262; Wang et al. 2022, arXiv:2211.00593).

Two prompts of equal length differ in what makes the model answer differently. Activation patching
runs the corrupt one with one activation from the clean one, and measures how much of the difference
that restores, f being the logit (or difference of two) that is asked for:

    (f(patched) - f(corrupt)) / (f(clean) - f(corrupt))         1: all of it

Attribution patching (Nanda 2023; Syed et al. 2023, arXiv:2310.10348) is its first-order estimate,
for all activations from one backward: (a_clean - a_corrupt) · ∂f/∂a, at the corrupt run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from numgpt.insight.targets import Target, target
from numgpt.layers import IGNORE_INDEX
from numgpt.messages import shown
from numgpt.models.hooks import Hook
from numgpt.models.inputs import Ids, targets_array
from numgpt.models.language_model import LanguageModel

# What can be patched -> the hook in a block; of a head all positions at once, else each position.
KINDS = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "heads": "attn.hook_z",
}


class _Runs(NamedTuple):
    names: list[str]  # of the hooks, a layer each
    clean: dict[str, np.ndarray]
    of_corrupt: Target
    clean_value: float
    corrupt_value: float

    def normalised(self, difference: np.ndarray) -> np.ndarray:
        """f - f(corrupt) -> the fraction of the way to f(clean)."""
        whole = self.clean_value - self.corrupt_value
        if whole == 0:
            raise ValueError(
                "the clean and the corrupt prompt have the same value: nothing is to be restored;"
                " choose prompts, or tokens, that differ"
            )
        return difference / whole


def activation_patching(
    model: LanguageModel,
    clean: Ids,
    corrupt: Ids,
    token: int,
    against: int | None = None,
    kind: str = "resid_pre",
    position: int = -1,
) -> np.ndarray:
    """How much of the clean answer each clean activation restores in the corrupt run: (L, T) by
    layer and position, for kind="heads" (L, H).

    clean, corrupt (T,); the value is the logit of `token` after `position`, less that of
    `against`.
    """
    pair = (target(model, ids, token, against, position) for ids in (clean, corrupt))
    runs = _runs(model, kind, *pair)
    rows = []
    for name in runs.names:
        # A row of the batch for each activation that is patched: number n is, in row n.
        count = runs.clean[name].shape[2 if kind == "heads" else 1]
        copies = np.repeat(runs.of_corrupt.ids, count, axis=0)
        hook = _patching(runs.clean[name][0], by_head=kind == "heads")
        values = runs.of_corrupt.value(model.run_with_hooks(copies, {name: hook}))
        rows.append(values.astype(np.float64) - runs.corrupt_value)
    return runs.normalised(np.stack(rows))


def _patching(clean: np.ndarray, by_head: bool) -> Hook:
    """clean (T, C) or (T, H, D): into row n of the batch goes position or head n."""

    def patch(activation: np.ndarray) -> np.ndarray:
        patched, each = activation.copy(), np.arange(len(activation))
        if by_head:
            patched[each, :, each] = clean.transpose(1, 0, 2)
        else:
            patched[each, each] = clean
        return patched

    return patch


def attribution_patching(
    model: LanguageModel,
    clean: Ids,
    corrupt: Ids,
    token: int,
    against: int | None = None,
    kind: str = "resid_pre",
    position: int = -1,
) -> np.ndarray:
    """The first-order estimate of `activation_patching`, from one forward and one backward."""
    pair = (target(model, ids, token, against, position) for ids in (clean, corrupt))
    runs = _runs(model, kind, *pair)
    of = runs.of_corrupt
    _, activations, gradients = model.run_with_gradients(of.ids, of.gradient, runs.names)
    rows = []
    for name in runs.names:
        terms = (runs.clean[name] - activations[name]).astype(np.float64) * gradients[name]
        rows.append(terms[0].sum(axis=(0, 2) if kind == "heads" else 1))
    return runs.normalised(np.stack(rows))


def ablation_hooks(
    model: LanguageModel,
    heads: Iterable[tuple[int, int]] = (),
    mlps: Iterable[int] = (),
    means: Ids | None = None,
) -> dict[str, Hook]:
    """Hooks for `run_with_hooks` and `loss_and_grads` that take heads, (layer, head), and
    feed-forward layers out: zero in their place, or with means=ids their mean over these tokens.

    Raises ValueError for a head or a layer that there is not.
    """
    layers, count = len(model.blocks), model.config.heads
    heads_of: dict[str, Any] = {}  # name of a hook -> heads, of the feed-forward layers' the whole
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise ValueError(
                f"there is no head {(layer, head)}: each of the {layers} layers has {count}"
            )
        heads_of.setdefault(f"{model.blocks[layer].hook_prefix}attn.hook_z", []).append(head)
    for layer in mlps:
        if not 0 <= layer < layers:
            raise ValueError(f"there is no layer {layer}: the model has {layers}")
        heads_of[f"{model.blocks[layer].hook_prefix}hook_mlp_out"] = slice(None)
    seen = {} if means is None else model.run_with_cache(means, list(heads_of))[1]
    averages = {name: activation.mean(axis=(0, 1)) for name, activation in seen.items()}
    return {name: _taking_out(which, averages.get(name)) for name, which in heads_of.items()}


def ablation(
    model: LanguageModel, ids: Ids, targets: Ids, means: Ids | None = None
) -> dict[str, np.ndarray]:
    """How much the mean loss on a text rises without each head and each feed-forward layer:
    {"heads": (L, H), "mlps": (L,)}, in nats.  means as in `ablation_hooks`."""
    layers, heads = range(len(model.blocks)), range(model.config.heads)
    inputs = model.check_ids(ids)
    wanted = targets_array(targets, inputs, model.config)
    count = np.count_nonzero(wanted != IGNORE_INDEX)

    def loss(**out: Any) -> float:
        hidden = model.hidden(inputs, hooks=ablation_hooks(model, means=means, **out))
        logp, _ = model.unembedding.log_probs(hidden, wanted.ravel())
        return -float(logp.sum(dtype=np.float64) / count)

    whole = loss()
    without_head = [[loss(heads=[(layer, head)]) for head in heads] for layer in layers]
    without_mlp = [loss(mlps=[layer]) for layer in layers]
    return {"heads": np.array(without_head) - whole, "mlps": np.array(without_mlp) - whole}


def _taking_out(which: list[int] | slice, mean: np.ndarray | None) -> Hook:
    def take_out(activation: np.ndarray) -> np.ndarray:
        left = activation.copy()
        left[:, :, which] = 0 if mean is None else mean[which]
        return left

    return take_out


def _runs(model: LanguageModel, kind: str, of_clean: Target, of_corrupt: Target) -> _Runs:
    if kind not in KINDS:
        raise ValueError(f"kind={shown(kind)}: expected {', '.join(KINDS)}")
    if of_clean.ids.shape != of_corrupt.ids.shape:
        raise ValueError(
            f"the clean prompt has {of_clean.ids.size} tokens, the corrupt one"
            f" {of_corrupt.ids.size}: make them equally long"
        )
    names = [f"{block.hook_prefix}{KINDS[kind]}" for block in model.blocks]
    logits, activations = model.run_with_cache(of_clean.ids, names)
    values = (float(of_clean.value(logits)[0]), float(of_corrupt.value(model(of_corrupt.ids))[0]))
    return _Runs(names, activations, of_corrupt, *values)
