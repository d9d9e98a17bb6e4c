"""Hooks: they see what a model computes on its way, and may put something else in its place.

To lessons/gpt.py this page adds the places where to look. A pass calls `hook(name, array)` there,
forward with the activation, backward with the loss's gradient by it. A function that is given under
the name sees the array, read-only, and may return another one to go on with. The names, and the
shapes that functions see, are those of TransformerLens: the residual stream (B, T, C), heads (B, T,
H, D), what a norm of queries or keys gives (B, H, T, D), attention's probabilities (B, H, T, S).

A replacement is straight-through, as x + (replacement - x).detach() is in PyTorch: what follows
sees the replacement, so that dv = replaced patternᵀ dz; the function whose output was replaced gets
the gradient at it, and takes its derivative at what it had computed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from numgpt.messages import shown
from numgpt.models.inputs import Ids
from numgpt.models.parameters import Gradients

if TYPE_CHECKING:
    from numgpt.models.language_model import LanguageModel

Hook = Callable[[np.ndarray], np.ndarray | None]  # an activation -> another one, or None
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class Hooks:
    """The functions of one pass, by name."""

    def __init__(self, functions: Mapping[str, Hook], batch: int, prefix: str = ""):
        self.functions, self.batch, self.prefix = functions, batch, prefix

    def under(self, prefix: str) -> Hooks:
        """The same hooks, for the names that begin so."""
        return Hooks(self.functions, self.batch, self.prefix + prefix) if self.functions else self

    def has(self, name: str) -> bool:
        """Whether a function is there for the name."""
        return self.prefix + name in self.functions

    def __call__(self, name: str, array: np.ndarray) -> np.ndarray:
        """What the pass goes on with.  array as users see it."""
        if not self.functions or not self.has(name):
            return array
        name = self.prefix + name
        seen = array.view()
        seen.flags.writeable = False
        result = self.functions[name](seen)
        if result is None or result is seen:
            return array
        if (given := _described(result)) != (expected := _described(array)):
            raise ValueError(f"the hook {name} returned {given}: expected None, or {expected}")
        return result

    def rows(self, name: str, x: np.ndarray) -> np.ndarray:
        """x (N, C), which users see as (B, T, C)."""
        if not self.functions or not self.has(name):
            return x
        seen = x.reshape(self.batch, -1, x.shape[-1])
        result = self(name, seen)
        return x if result is seen else result.reshape(x.shape)

    def heads(self, name: str, x: np.ndarray) -> np.ndarray:
        """x (B, H, T, D), which users see as (B, T, H, D)."""
        if not self.functions or not self.has(name):
            return x
        seen = x.transpose(0, 2, 1, 3).copy()  # x may be a view on what is written to later
        result = self(name, seen)
        return x if result is seen else result.transpose(0, 2, 1, 3)

    def rows_into(self, name: str, x: np.ndarray) -> None:
        """As `rows`, for x that is a view: what takes its place is written into it."""
        if self.has(name):
            x[...] = self.rows(name, x.copy())


NO_HOOKS = Hooks({}, 1)


def _described(value: object) -> str:
    """What errors say of a value: of an array its shape and dtype."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    return shown(value)


def check_hooks(kind: str, hooks: Mapping[str, Hook], known: Sequence[str]) -> None:
    """Raises TypeError for what is not functions by name, ValueError for an unknown name."""
    if not isinstance(hooks, Mapping):
        raise TypeError(
            f"{kind} are {shown(hooks)}: expected functions by name, {{name: function}}"
        )
    check_names(kind, hooks, known)
    for name, function in hooks.items():
        if not callable(function):
            raise TypeError(f"{kind}: under {name} is {shown(function)}: expected a function")


def check_names(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for a name that no hook has, with those that are near."""
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(str(name), known, 3, cutoff=0))
            raise ValueError(f"{kind}: no hook is named {shown(name)}: there are {near}, …")


def chosen_names(names_filter: NamesFilter, known: Sequence[str]) -> list[str]:
    """The names that a filter lets through: one, several, those a function is true for, or all.
    Raises ValueError for one that there is not."""
    if names_filter is None:
        return list(known)
    if callable(names_filter):
        return [name for name in known if names_filter(name)]
    names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    check_names("names_filter", names, known)
    return names


# --- runs of a model with hooks: its methods of the same names ---


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
    ids = model.check_ids(ids)
    hidden, kept = _kept(model, ids, chosen_names(names_filter, model.hook_names))
    return model.unembedding.logits(hidden).reshape(*ids.shape, -1), kept


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
    watchers = {**given, **{name: _keeper(name, activations, given.get(name)) for name in names}}
    keepers = {name: _keeper(name, gradients) for name in names}
    hidden, back = model.run(ids, None, watchers, keepers)
    logits = model.unembedding.logits(hidden).reshape(*ids.shape, -1)
    upstream = dlogits(logits)
    if not isinstance(upstream, np.ndarray) or upstream.shape != logits.shape:
        expected = f"expected an array of the logits' shape, {logits.shape}"
        raise ValueError(f"dlogits returned {_described(upstream)}: {expected}")
    upstream = upstream.astype(logits.dtype, copy=False).reshape(len(hidden), -1)
    nothing_trains = Gradients({}, logits.dtype)
    back(model.unembedding.logits_backward(upstream, hidden, nothing_trains), nothing_trains)
    return logits, activations, gradients


def hidden_states(model: LanguageModel, ids: Ids) -> tuple[np.ndarray, ...]:
    """The residual stream before each block, and what the unembedding reads: L + 1 arrays (B, T,
    C), as transformers has them with output_hidden_states=True."""
    ids = model.check_ids(ids)
    names = [f"{block.hook_prefix}hook_resid_pre" for block in model.blocks]
    hidden, streams = _kept(model, ids, names)
    return (*streams.values(), hidden.reshape(*ids.shape, -1))


def attentions(model: LanguageModel, ids: Ids) -> tuple[np.ndarray, ...]:
    """The attention probabilities of each block: L arrays (B, H, T, T), as transformers has them
    with output_attentions=True."""
    names = [f"{block.hook_prefix}attn.hook_pattern" for block in model.blocks]
    return tuple(_kept(model, model.check_ids(ids), names)[1].values())


def _kept(
    model: LanguageModel, ids: np.ndarray, names: Iterable[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Hidden states (N, C), and the activations of these names."""
    kept: dict[str, np.ndarray] = {}
    return model.hidden(ids, hooks={name: _keeper(name, kept) for name in names}), kept


def _keeper(name: str, kept: dict[str, np.ndarray], replaces: Hook | None = None) -> Hook:
    """A hook that keeps what it sees, or what another one puts in its place, under a name."""

    def keep(activation: np.ndarray) -> np.ndarray | None:
        result = None if replaces is None else replaces(activation)
        kept[name] = (activation if result is None else result).copy()
        return result

    return keep
