"""A model that is looked into: activations by name, replaced, or kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from numgpt.messages import shown
from numgpt.models.adapters import AdaptableModel
from numgpt.models.base import CacheT, ConfigT
from numgpt.models.context import Context
from numgpt.models.hooks import Hook, Hooks, NamesFilter, check_hooks, chosen_names
from numgpt.models.inputs import Ids, ids_array
from numgpt.models.parameters import Gradients
from numgpt.runtime import matmul


class ObservedModel(AdaptableModel[ConfigT, CacheT]):
    """A model from ids to logits, and what it computes on the way."""

    def check_ids(self, ids: Ids, any_length: bool = False) -> np.ndarray:
        """ids as (B, T) int64.  Raises ValueError for an empty, ragged, out-of-range or, without
        any_length, too long input."""
        return ids_array(ids, self.config, any_length)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden (N, C) -> (N, V)."""
        return matmul(hidden, self.parameters[self.unembedding].T)

    @property
    def hook_names(self) -> list[str]:
        """The places where hooks see activations and gradients, in the order of the forward pass:
        TransformerLens's names for them."""
        blocks = [f"blocks.{block.layer}.{n}" for block in self.blocks for n in block.hook_names]
        return [*self.embedding_hooks, *blocks, "ln_final.hook_normalized"]

    def run_with_hooks(self, ids: Ids, hooks: Mapping[str, Hook]) -> np.ndarray:
        """Logits (B, T, V), with functions called on the activations on the way.

        hooks[name](activation) sees it as a read-only array and returns a new one, of the same
        shape and dtype, to go on with, or None. Streams are (B, T, C), q and z (B, T, H, D), k and
        v (B, T, K, D), patterns (B, H, T, S). Raises ValueError for a name that is not among
        `hook_names`.
        """
        ids = self.check_ids(ids)
        return self.logits(self._hooked(ids, hooks)).reshape(*ids.shape, -1)

    def run_with_cache(
        self, ids: Ids, names_filter: NamesFilter = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits (B, T, V), and the activations by name: all, or those of a name, of several, or
        those for which a function of the name is true."""
        ids, names = self.check_ids(ids), chosen_names(names_filter, self.hook_names)
        hidden, activations = self._activations(ids, names)
        return self.logits(hidden).reshape(*ids.shape, -1), activations

    def hidden_states(self, ids: Ids) -> tuple[np.ndarray, ...]:
        """The residual stream before each block, and what the unembedding reads: L + 1 arrays (B,
        T, C), as transformers has them with output_hidden_states=True."""
        ids = self.check_ids(ids)
        names = [f"{block.hooks}hook_resid_pre" for block in self.blocks]
        hidden, streams = self._activations(ids, names)
        return (*streams.values(), hidden.reshape(*ids.shape, -1))

    def attentions(self, ids: Ids) -> tuple[np.ndarray, ...]:
        """The attention probabilities of each block: L arrays (B, H, T, T), as transformers has
        them with output_attentions=True."""
        names = [f"{block.hooks}attn.hook_pattern" for block in self.blocks]
        return tuple(self._activations(self.check_ids(ids), names)[1].values())

    def _activations(
        self, ids: np.ndarray, names: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Hidden states (N, C), and the activations of these names."""
        activations: dict[str, np.ndarray] = {}
        return self._hooked(ids, {n: _keeper(n, activations) for n in names}), activations

    def _hooked(self, ids: np.ndarray, hooks: Mapping[str, Hook]) -> np.ndarray:
        """Hidden states (N, C) of a pass with hooks."""
        ctx = Context(len(ids))
        self._look_on(ctx, hooks, {})
        hidden, _ = self.forward(ids, ctx)
        return hidden

    def run_with_gradients(
        self,
        ids: Ids,
        dlogits: Callable[[np.ndarray], np.ndarray],
        names_filter: NamesFilter = None,
        hooks: Mapping[str, Hook] | None = None,
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Logits (B, T, V), activations by name, and the gradient of any function f of the logits
        with respect to each of them.

        dlogits(logits (B, T, V)) -> ∂f/∂logits (B, T, V). Activations are chosen as in
        `run_with_cache`; hooks see and replace them first. No parameter gets a gradient.
        """
        ids, names = self.check_ids(ids), chosen_names(names_filter, self.hook_names)
        activations: dict[str, np.ndarray] = {}
        gradients: dict[str, np.ndarray] = {}
        given = dict(hooks or {})
        seers = {n: _keeper(n, activations, given.get(n)) for n in names} | {
            name: hook for name, hook in given.items() if name not in names
        }
        ctx = Context(len(ids), keeps_caches=True)
        self._look_on(ctx, seers, {name: _keeper(name, gradients) for name in names})
        hidden, cache = self.forward(ids, ctx)
        logits = self.logits(hidden).reshape(*ids.shape, -1)
        returned = dlogits(logits)
        if not isinstance(returned, np.ndarray):
            raise ValueError(
                f"dlogits returned {shown(returned)}: expected an array of the logits' shape"
            )
        upstream = returned.astype(logits.dtype, copy=False)
        if upstream.shape != logits.shape:
            raise ValueError(
                f"dlogits returned shape {upstream.shape}: expected that of the logits,"
                f" {logits.shape}"
            )
        dhidden = matmul(upstream.reshape(len(hidden), -1), self.parameters[self.unembedding])
        self.backward(dhidden, cache, ctx, Gradients({}, logits.dtype))
        return logits, activations, gradients

    def _look_on(
        self, ctx: Context, hooks: Mapping[str, Hook], backward_hooks: Mapping[str, Hook]
    ) -> None:
        """Have functions called in a pass. What they have seen or replaced stays as it is: nothing
        is added to in place or computed again."""
        known = self.hook_names
        check_hooks("hooks", hooks, known)
        check_hooks("backward_hooks", backward_hooks, known)
        ctx.hooks, ctx.grad_hooks = Hooks(hooks, ctx.batch), Hooks(backward_hooks, ctx.batch)
        ctx.in_place, ctx.keeps_inputs = False, True
        if backward_hooks:
            ctx.lowest = 0


def _keeper(name: str, kept: dict[str, np.ndarray], replaces: Hook | None = None) -> Hook:
    """A hook that keeps what it sees, or what another one puts in its place, under a name."""

    def keep(activation: np.ndarray) -> np.ndarray | None:
        result = None if replaces is None else replaces(activation)
        kept[name] = (activation if result is None else result).copy()
        return result

    return keep
