"""One pass through a model, forwards and backwards, with everything kept that an explanation shows.

The loss is the mean over the tokens of the text, each given those before it, and over one that is
expected after the last:

    L = 1/n Σ_t -log p_t[target_t]            dL/dlogits_t = (p_t - onehot(target_t)) / n

The activations and their gradients are what the model's own forward and backward hand to hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from numgpt.insight.attribution import attribution_names
from numgpt.insight.lens import lens_names
from numgpt.insight.tokens import loss_dlogits
from numgpt.layers.softmax import log_softmax
from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError

STEPS = np.array([1, 3 / 4, 1 / 2, 1 / 4])  # of a finite difference, beside the longest
ROUNDING = 1e-6  # of the largest gradient, below which one is nothing but rounding


class Trace(NamedTuple):
    """A text's way through a model. Arrays lack the batch's axis."""

    model: LanguageModel
    ids: np.ndarray  # (T,)
    targets: np.ndarray  # (T,): what comes after each token
    layers: range  # those that are kept
    logits: np.ndarray  # (T, V)
    dlogits: np.ndarray  # (T, V)
    loss: float
    activations: dict[str, np.ndarray]  # by the names of hooks
    gradients: dict[str, np.ndarray]


class Difference(NamedTuple):
    """A number of the backward pass, and the same by finite differences of the loss."""

    place: tuple[int, ...]  # in the activation
    gradient: float
    difference: float
    step: float  # the longest


def trace(model: LanguageModel, ids: np.ndarray, after: int, layers: range) -> Trace:
    """ids (T,), and the token that is expected after them -> all of it, for these layers."""
    targets = np.append(ids[1:], after)
    names, weights = kept_names(model, layers), np.full(len(targets), 1 / len(targets))
    dlogits = partial(loss_dlogits, targets=targets, weights=weights)
    logits, activations, gradients = model.run_with_gradients(ids, dlogits, names)
    for name, array in (*activations.items(), ("the logits", logits), *gradients.items()):
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} is not finite: the weights of {shown(model.name_or_path)} are damaged, or"
                " hold numbers too large"
            )
    loss, both = mean_loss(logits, targets)[0], (activations, gradients)
    of_one = ({name: array[0] for name, array in arrays.items()} for arrays in both)
    return Trace(model, ids, targets, layers, logits[0], dlogits(logits)[0], loss, *of_one)


def mean_loss(logits: np.ndarray, targets: np.ndarray) -> list[float]:
    """The loss of each of several copies of a text, in float64.  logits (B, T, V), targets (T,)."""
    logp = log_softmax(logits.astype(np.float64))
    return [-float(row[np.arange(len(targets)), targets].mean()) for row in logp]


def kept_names(model: LanguageModel, layers: range) -> list[str]:
    """The hooks of these layers, and what lens and attribution need of all."""
    of_layers = tuple(f"blocks.{layer}." for layer in layers)
    everywhere = {*lens_names(model), *attribution_names(model), "ln_final.hook_normalized"}
    return [n for n in model.hook_names if n in everywhere or n.startswith(of_layers)]


def chosen_layers(model: LanguageModel, layers: tuple[int | None, int | None] | None) -> range:
    """Layers A up to, but not including, B, each of which may be None; None: all.  Raises
    ValueError for none of them."""
    count = len(model.blocks)
    first, last = layers or (None, None)
    first, last = first or 0, count if last is None else last
    if not 0 <= first < last <= count:
        range_of = f"{first}:{last}: expected A:B with A below B, of the layers 0:{count}"
        raise OptionError(f"{{layers:name}} {range_of}")
    return range(first, last)


def differences(
    of: Trace,
    names: Sequence[str],
    token: int,
    progress: Callable[[str], object] = lambda what: None,
) -> dict[str, Difference]:
    """The largest gradient of each of these activations at a token, if it is not 0 but for
    rounding, by central differences of the loss: the g of

        (L(x + h) - L(x - h)) / 2  =  g h + c h³ + d h⁵

    for several steps h, by least squares. The longest changes L by about half the cube root of the
    dtype's precision: beside that L's rounding is small, and where L bends, c and d take it up.
    Where a step of a fifth of the largest number changes L by far less, d is left out, as rounding
    weighs more there.
    """
    found = {}
    for number, name in enumerate(names):
        progress(f"checks of the gradients, {number + 1} of {len(names)}")
        if (difference := _difference(of, name, token)) is not None:
            found[name] = difference
    return found


def _difference(of: Trace, name: str, token: int) -> Difference | None:
    x, dx = of.activations[name], of.gradients[name]
    by_head = name.endswith(("hook_pattern", "_normed"))  # (H, query, key) and (H, T, D)
    place: tuple[slice | int, ...] = (slice(None), token) if by_head else (token,)
    if name.endswith("hook_pattern"):
        place += (slice(token + 1),)  # later keys have no part in the model
    part = np.unravel_index(np.abs(dx[place]).argmax(), dx[place].shape)
    inner = [int(number) for number in part]
    index = (inner[0], token, inner[1]) if by_head else (token, *inner)
    gradient = float(dx[index])
    if not abs(gradient) > ROUNDING * np.abs(dx).max():
        return None
    change = np.finfo(x.dtype).eps ** (1 / 3) * max(1.0, of.loss)
    longest = float(change) / abs(gradient)
    longest = min(longest, 0.2 * float(np.abs(x[place]).max()) or longest)
    powers = [1, 3]
    if longest * abs(gradient) > 0.1 * change:
        longest, powers = longest / 2, [1, 3, 5]
    steps = longest * STEPS

    def moved(activation: np.ndarray) -> np.ndarray:
        changed = activation.copy()
        for copy, step in enumerate(np.concatenate([steps, -steps])):
            changed[(copy, *index)] += step
        return changed

    logits = of.model.run_with_hooks(np.stack([of.ids] * (2 * len(steps))), {name: moved})
    losses = np.array(mean_loss(logits, of.targets)).reshape(2, -1)
    terms = np.stack([STEPS**power for power in powers], axis=1)
    (slope, *_), *_ = np.linalg.lstsq(terms, (losses[0] - losses[1]) / 2, rcond=None)
    return Difference(index, gradient, float(slope) / longest, longest)
