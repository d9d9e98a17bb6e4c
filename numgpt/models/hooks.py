"""Hooks: a look at what a model computes on its way, and a hand in it.

A pass calls `hook(name, array)` at named places, forward with the activation, backward with the
loss's gradient by it. A function that is given under the name sees the array, read-only, and may
return another one to go on with. The names, and the shapes that functions see, are those of
TransformerLens: the residual stream (B, T, C), heads (B, T, H, D), attention's probabilities
(B, H, T, S).

A replacement is straight-through, as x + (replacement - x).detach() is in PyTorch: what follows
sees the replacement, so that dv = replaced patternᵀ dz; the function whose output was replaced gets
the gradient at it, and takes its derivative at what it had computed.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from numgpt.messages import shown

Hook = Callable[[np.ndarray], np.ndarray | None]  # an activation -> another one, or None
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class Hooks:
    """The functions of one pass, by name."""

    def __init__(self, functions: Mapping[str, Hook], batch: int, prefix: str = ""):
        self.functions = functions
        self.batch = batch
        self.prefix = prefix

    def under(self, prefix: str) -> Hooks:
        """The same hooks, for the names that begin so."""
        return Hooks(self.functions, self.batch, self.prefix + prefix) if self.functions else self

    def has(self, name: str) -> bool:
        """Whether a function is there for the name."""
        return bool(self.functions) and self.prefix + name in self.functions

    def __call__(self, name: str, array: np.ndarray) -> np.ndarray:
        """What the pass goes on with.  array as users see it."""
        if not self.has(name):
            return array
        name = self.prefix + name
        seen = array.view()
        seen.flags.writeable = False
        result = self.functions[name](seen)
        if result is None or result is seen:
            return array
        if not isinstance(result, np.ndarray) or (result.shape, result.dtype) != (
            array.shape,
            array.dtype,
        ):
            given = (
                f"an array of shape {result.shape}, {result.dtype}"
                if isinstance(result, np.ndarray)
                else shown(result)
            )
            raise ValueError(
                f"the hook {name} returned {given}: expected None, or an array of shape"
                f" {array.shape}, {array.dtype}"
            )
        return result

    def rows(self, name: str, x: np.ndarray) -> np.ndarray:
        """x (N, C), which users see as (B, T, C)."""
        if not self.has(name):
            return x
        seen = x.reshape(self.batch, -1, x.shape[-1])
        result = self(name, seen)
        return x if result is seen else result.reshape(x.shape)

    def heads(self, name: str, x: np.ndarray) -> np.ndarray:
        """x (B, H, T, D), which users see as (B, T, H, D)."""
        if not self.has(name):
            return x
        seen = x.transpose(0, 2, 1, 3).copy()  # x may be a view on what is written to later
        result = self(name, seen)
        return x if result is seen else result.transpose(0, 2, 1, 3)

    def rows_into(self, name: str, x: np.ndarray) -> None:
        """As `rows`, for x that is a view: what takes its place is written into it."""
        if self.has(name):
            x[...] = self.rows(name, x.copy())

    def heads_into(self, name: str, x: np.ndarray) -> None:
        """As `heads`, for x that is a view: what takes its place is written into it."""
        if self.has(name):
            x[...] = self.heads(name, x)


NO_HOOKS = Hooks({}, 1)


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
        if not takes(function, 1):
            raise TypeError(
                f"{kind}: {shown(function)} under {name} does not take one argument, the array"
            )


def takes(function: Callable, count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def check_names(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for a name that no hook has, with those that are near."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 3, cutoff=0)
            raise ValueError(
                f"{kind}: no hook is named {shown(name)}: there are {', '.join(near)}, …"
            )


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
