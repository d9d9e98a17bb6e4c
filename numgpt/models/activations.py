"""Runs of a model that is looked into: activations by name, kept or replaced, and their gradients.

What hooks are is in hooks.py. These functions are the methods of a model of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from numgpt.messages import shown
from numgpt.models.hooks import Hook, NamesFilter, chosen_names
from numgpt.models.inputs import Ids
from numgpt.models.parameters import Gradients

if TYPE_CHECKING:
    from numgpt.models.language_model import LanguageModel


def run_with_hooks(model: LanguageModel, ids: Ids, hooks: Mapping[str, Hook]) -> np.ndarray:
    """Logits (B, T, V), with functions called on the activations on the way.

    hooks[name](activation) sees it as a read-only array and returns a new one, of the same shape
    and dtype, to go on with, or None. Streams are (B, T, C), q and z (B, T, H, D), k and v (B, T,
    K, D), what a norm of queries or keys gives (B, H, T, D), patterns (B, H, T, S). Raises
    ValueError for a name that is not among `hook_names`.
    """
    ids = model.check_ids(ids)
    hidden = model.hidden(ids, hooks=hooks)
    return model.unembedding.logits(hidden).reshape(*ids.shape, -1)


def run_with_cache(
    model: LanguageModel, ids: Ids, names_filter: NamesFilter = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (B, T, V), and the activations by name: all, or those of a name, of several, or those
    for which a function of the name is true."""
    kept: dict[str, np.ndarray] = {}
    keepers = {name: _keeper(name, kept) for name in chosen_names(names_filter, model.hook_names)}
    return run_with_hooks(model, ids, keepers), kept


def run_with_gradients(
    model: LanguageModel,
    ids: Ids,
    dlogits: Callable[[np.ndarray], np.ndarray],
    names_filter: NamesFilter = None,
    hooks: Mapping[str, Hook] | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Logits (B, T, V), activations by name, and the gradient of any function f of the logits with
    respect to each of them.

    dlogits(logits (B, T, V)) -> ∂f/∂logits (B, T, V). Activations are chosen as in
    `run_with_cache`; hooks see and replace them first. No parameter gets a gradient.
    """
    ids = model.check_ids(ids)
    names, given = chosen_names(names_filter, model.hook_names), hooks or {}
    activations: dict[str, np.ndarray] = {}
    gradients: dict[str, np.ndarray] = {}
    seers = {**given, **{name: _keeper(name, activations, given.get(name)) for name in names}}
    hidden, back = model.run(ids, None, seers, {name: _keeper(name, gradients) for name in names})
    logits = model.unembedding.logits(hidden).reshape(*ids.shape, -1)
    upstream = _checked_dlogits(dlogits(logits), logits).reshape(len(hidden), -1)
    nothing_trains = Gradients({}, logits.dtype)
    back(model.unembedding.logits_backward(upstream, hidden, nothing_trains), nothing_trains)
    return logits, activations, gradients


def hidden_states(model: LanguageModel, ids: Ids) -> tuple[np.ndarray, ...]:
    """The residual stream before each block, and what the unembedding reads: L + 1 arrays (B, T,
    C), as transformers has them with output_hidden_states=True."""
    ids = model.check_ids(ids)
    streams: dict[str, np.ndarray] = {}
    names = [f"{block.hook_prefix}hook_resid_pre" for block in model.blocks]
    hidden = model.hidden(ids, hooks={name: _keeper(name, streams) for name in names})
    return (*streams.values(), hidden.reshape(*ids.shape, -1))


def attentions(model: LanguageModel, ids: Ids) -> tuple[np.ndarray, ...]:
    """The attention probabilities of each block: L arrays (B, H, T, T), as transformers has them
    with output_attentions=True."""
    patterns: dict[str, np.ndarray] = {}
    names = [f"{block.hook_prefix}attn.hook_pattern" for block in model.blocks]
    keepers = {name: _keeper(name, patterns) for name in names}
    model.hidden(model.check_ids(ids), hooks=keepers)
    return tuple(patterns.values())


def _keeper(name: str, kept: dict[str, np.ndarray], replaces: Hook | None = None) -> Hook:
    """A hook that keeps what it sees, or what another one puts in its place, under a name."""

    def keep(activation: np.ndarray) -> np.ndarray | None:
        result = None if replaces is None else replaces(activation)
        kept[name] = (activation if result is None else result).copy()
        return result

    return keep


def _checked_dlogits(returned: object, logits: np.ndarray) -> np.ndarray:
    """Raises ValueError for what has not the logits' shape."""
    if not isinstance(returned, np.ndarray):
        raise ValueError(
            f"dlogits returned {shown(returned)}: expected an array of the logits' shape"
        )
    if returned.shape != logits.shape:
        raise ValueError(
            f"dlogits returned shape {returned.shape}: expected that of the logits, {logits.shape}"
        )
    return returned.astype(logits.dtype, copy=False)
