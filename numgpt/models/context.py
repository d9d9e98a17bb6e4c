"""What all blocks of one pass share: to lessons/gpt.py it adds a KV cache, dropout, hooks, and what
of a pass is kept for its backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from numgpt.layers.rope import Rotation
from numgpt.models.hooks import NO_HOOKS, Hook, Hooks, check_hooks
from numgpt.models.kv_cache import KVView
from numgpt.models.modules import Saved
from numgpt.runtime import add_into

Cache = TypeVar("Cache")


@dataclass
class Context:
    """One pass of ids (B, T) through a model."""

    batch: int  # B
    rng: np.random.Generator | None = None  # switches dropout on
    kv: KVView | None = None  # keys and values of earlier positions, which takes in the new ones
    rotation: Rotation | None = None  # RoPE's, of the pass's positions
    for_backward: bool = False  # a backward follows
    saves_inputs: bool = False  # keeps what projections read; else the backward recomputes it
    last_only_in: int | None = None  # of this layer, only what each sequence's last token needs
    first_trained: int = 0  # the blocks before it, and the embeddings, need no backward
    hooks: Hooks = NO_HOOKS  # on activations
    grad_hooks: Hooks = NO_HOOKS  # on their gradients
    in_place: bool = True  # False while hooks look on: they may hold any array, so none may change

    def look_on(
        self, hooks: Mapping[str, Hook], backward_hooks: Mapping[str, Hook], known: Sequence[str]
    ) -> None:
        """Call these functions in this pass. What they have seen or replaced stays as it is:
        nothing is added to in place or recomputed.  Raises as `check_hooks` does."""
        check_hooks("hooks", hooks, known)
        check_hooks("backward_hooks", backward_hooks, known)
        self.hooks, self.grad_hooks = Hooks(hooks, self.batch), Hooks(backward_hooks, self.batch)
        self.in_place, self.saves_inputs = False, True
        if backward_hooks:
            self.first_trained = 0

    def needs_cache(self, layer: int) -> bool:
        """Whether a backward needs the cache of this layer's block."""
        return self.for_backward and layer >= self.first_trained

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x + y, in the memory of x where that may be: y is what a branch adds to the stream x."""
        if not self.in_place:
            return x + y
        add_into(x, y)
        return x

    def save(self, y: np.ndarray, output: Callable[[Cache], np.ndarray], cache: Cache) -> Saved:
        """What gives y (N, …) to the backward: y itself, or the function that recomputes it from
        the cache of its layer, which is kept anyway. (With hooks y is kept: it may be a
        replacement.)"""
        return (lambda: y) if self.saves_inputs else functools.partial(output, cache)

    def positions(self, ids: np.ndarray, context_length: int) -> np.ndarray:
        """(B, T): the place of each token in its sequence; at padding on the right, any."""
        times = np.arange(ids.shape[1])
        if self.kv is None:
            return np.broadcast_to(times, ids.shape)
        return np.minimum(self.kv.lengths[:, None] + times, context_length - 1)

    def keys_and_values(
        self, layer: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """k, v (B, K, T, D) -> those of all positions so far (B, K, S, D), and where they count
        (B, S)."""
        return (k, v, None) if self.kv is None else self.kv.append(layer, k, v)

    def queries(self, layer: int, q: np.ndarray) -> np.ndarray:
        """q (B, H, T, D); in the layer `last_only_in` each sequence's last query alone,
        (B, H, 1, D)."""
        if layer != self.last_only_in or q.shape[2] == 1:
            return q
        return q[np.arange(self.batch), :, self._last(q.shape[2])][:, :, None]

    def rows_like(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The rows of x (N, C) that y has: all, or those of the last tokens, (B, C)."""
        if len(x) == len(y):
            return x
        x = x.reshape(self.batch, -1, x.shape[1])
        return x[np.arange(self.batch), self._last(x.shape[1])]

    def _last(self, time: int) -> np.ndarray | int:
        """Which of the T tokens is each sequence's last: the others are padding."""
        return time - 1 if self.kv is None else self.kv.counts - 1

    def advance(self) -> None:
        """The new keys and values are complete."""
        if self.kv is not None:
            self.kv.advance()
