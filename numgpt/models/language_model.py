"""What every language model is asked for: logits, loss, gradients, activations, text, files.

The conveniences at the end of the class call upwards, to the packages `formats` and `generation`;
they import them when called, so that a model by itself stays a matter of layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from numgpt.layers import (
    IGNORE_INDEX,
    TokenStatistics,
    linear_cross_entropy,
    linear_log_probs_backward,
    linear_log_probs_forward,
)
from numgpt.layers.cross_entropy import LogProbsCache
from numgpt.messages import shown
from numgpt.models.base import CacheT, ConfigT
from numgpt.models.context import Context
from numgpt.models.data_parallel import Part, cut_batch, over_parts, with_gradients
from numgpt.models.hooks import Hook
from numgpt.models.inputs import Ids, targets_array, weights_array
from numgpt.models.lora import Adapter
from numgpt.models.observed import ObservedModel
from numgpt.models.parameters import Gradients

if TYPE_CHECKING:
    from numgpt.generation import GenerateOutput, Score

# logp (B, T) -> loss, dlogp (B, T), metrics
Objective = Callable[[np.ndarray], tuple[float, np.ndarray, dict[str, float]]]

KEPT_BYTES = 1 << 24  # up to so many, what projections read is kept for the backward


class LanguageModel(ObservedModel[ConfigT, CacheT]):
    """Token ids in, logits over the next token out."""

    # --- logits, log-probabilities, loss, gradients ---

    def __call__(self, ids: Ids) -> np.ndarray:
        """ids: list, (T,) or (B, T) -> logits (B, T, V)."""
        ids = self.check_ids(ids)
        hidden, _ = self.forward(ids, Context(len(ids)))
        return self.logits(hidden).reshape(*ids.shape, -1)

    def log_probs(self, ids: Ids, targets: Ids) -> np.ndarray:
        """log p of each target after the ids up to its place; 0 where the target is -100.  ids,
        targets (T,) or (B, T) -> (B, T)."""
        ids, targets = self._check(ids, targets)
        logp = np.zeros(ids.shape, self.parameters.dtype)

        def part_log_probs(part: Part) -> None:
            rows = part.sequences
            hidden, _ = self.forward(ids[rows], Context(len(ids[rows])))
            counted = targets[rows] != IGNORE_INDEX
            hidden = hidden if counted.all() else hidden[counted.ravel()]
            logp[rows][counted], _ = linear_log_probs_forward(
                hidden, self.parameters[self.unembedding], targets[rows][counted]
            )

        over_parts(part_log_probs, cut_batch(self.num_parameters(), ids.shape))
        return logp

    def loss(self, ids: Ids, targets: Ids, weights: np.typing.ArrayLike | None = None) -> float:
        """Mean cross-entropy in nats over the targets that are not -100.  ids, targets (T,) or (B,
        T).

        With weights (B, T), or what broadcasts to it: Σ weights · (-log p), not divided by
        anything: weights of 1/n give the mean over the n targets of several batches.
        """
        logp = self.log_probs(ids, targets)
        weights = weights_array(weights, np.atleast_2d(np.asarray(targets)), logp.dtype)
        return -float(np.vdot(weights.astype(np.float64), logp.astype(np.float64)))

    def loss_and_grads(
        self,
        ids: Ids,
        targets: Ids,
        rng: np.random.Generator | None = None,
        *,
        weights: np.typing.ArrayLike | None = None,
        add_to: Gradients | None = None,
        hooks: Mapping[str, Hook] | None = None,
        backward_hooks: Mapping[str, Hook] | None = None,
        statistics: TokenStatistics | None = None,
    ) -> tuple[float, Gradients]:
        """Loss as `loss` gives it, and its gradient by every parameter that trains, by name.

        rng switches the config's dropout on. The gradients are new, or with add_to=gradients added
        to those of a call before: one call for each part of a batch, with weights of 1/n for the n
        targets of all parts that count, gives the gradient of the whole. They are also kept as
        `model.gradients`, for the optimizer. An error on the way leaves none.

        hooks={name: function} sees or replaces activations, as in `run_with_hooks`, backward_hooks
        the gradients by them. A replaced activation has the gradient that it would have had if it
        had been computed, and hands it on to what it stands for.

        statistics are added to: how many targets count, how many are the likeliest token, and the
        entropy of the predictions.
        """
        self._forget_gradients(add_to)
        ids, targets = self._check(ids, targets)
        hooked = hooks is not None or backward_hooks is not None
        weights = weights_array(weights, targets, self.parameters.dtype)

        def part_loss(part: Part, g: Gradients) -> float:
            rows = part.sequences
            ctx = self._training_context(ids[rows], part.rng)
            if hooked:
                self._look_on(ctx, hooks or {}, backward_hooks or {})
            hidden, cache = self.forward(ids[rows], ctx)
            loss, dhidden, _ = linear_cross_entropy(
                hidden,
                self.parameters[self.unembedding],
                targets[rows].ravel(),
                weights[rows].ravel(),
                g.accumulator(self.unembedding),
                statistics=None if statistics is None else part_statistics[part.number],
            )
            del hidden
            self.backward(dhidden, cache, ctx, g)
            return loss

        parts = cut_batch(self.num_parameters(), ids.shape, rng, most=1 if hooked else None)
        part_statistics = [TokenStatistics() for _ in parts]
        losses, self.gradients = with_gradients(part_loss, parts, self._sums(add_to))
        if statistics is not None:
            for seen in part_statistics:
                statistics.add(seen)
        return sum(losses), self.gradients

    def value_and_grads(
        self,
        ids: Ids,
        targets: Ids,
        objective: Objective,
        rng: np.random.Generator | None = None,
        *,
        add_to: Gradients | None = None,
    ) -> tuple[float, Gradients, dict[str, float]]:
        """Value, gradients and metrics of an objective that sees all log-probabilities before it
        knows their gradients.

        objective(logp (B, T)) -> loss, dlogp (B, T), metrics, with logp as `log_probs` gives it.
        The rest is as in `loss_and_grads`.
        """
        self._forget_gradients(add_to)
        ids, targets = self._check(ids, targets)
        parts = cut_batch(self.num_parameters(), ids.shape, rng)
        logp = np.empty(ids.shape, self.parameters.dtype)

        def part_log_probs(part: Part) -> tuple[Context, CacheT, LogProbsCache]:
            rows = part.sequences
            ctx = self._training_context(ids[rows], part.rng)
            hidden, cache = self.forward(ids[rows], ctx)
            values, logp_cache = linear_log_probs_forward(
                hidden, self.parameters[self.unembedding], targets[rows].ravel()
            )
            logp[rows] = values.reshape(logp[rows].shape)
            return ctx, cache, logp_cache

        kept = over_parts(part_log_probs, parts)
        loss, dlogp, metrics = _checked_objective(objective(logp.copy()))
        dlogp = np.asarray(dlogp, logp.dtype)
        if dlogp.shape != logp.shape:
            raise ValueError(
                f"the objective's dlogp has shape {dlogp.shape}, logp {logp.shape}: they must be"
                " equal"
            )

        def part_backward(part: Part, g: Gradients) -> None:
            ctx, cache, logp_cache = kept[part.number]
            dhidden, _ = linear_log_probs_backward(
                dlogp[part.sequences].ravel(), logp_cache, g.accumulator(self.unembedding)
            )
            self.backward(dhidden, cache, ctx, g)

        _, self.gradients = with_gradients(part_backward, parts, self._sums(add_to))
        return float(loss), self.gradients, metrics

    def _training_context(self, ids: np.ndarray, rng: np.random.Generator | None) -> Context:
        """A pass that a backward follows.  What the projections read is kept where it is little,
        and else computed again: that costs less than the memory."""
        numbers = ids.size * self.config.layers * self.config.projected_width
        keeps_inputs = numbers * self.parameters.dtype.itemsize <= KEPT_BYTES
        return Context(
            len(ids),
            rng,
            keeps_caches=True,
            keeps_inputs=keeps_inputs,
            lowest=self._lowest_trained(),
        )

    def _check(self, ids: Ids, targets: Ids) -> tuple[np.ndarray, np.ndarray]:
        """ids and targets as (B, T) int64."""
        ids = self.check_ids(ids)
        return ids, targets_array(targets, ids, self.config)

    def _sums(self, add_to: Gradients | None) -> Gradients:
        return Gradients(self.trained, self.parameters.dtype) if add_to is None else add_to

    def _forget_gradients(self, add_to: Gradients | None) -> None:
        """Without add_to, this gives the memory of the last ones back, for the new ones to take."""
        self._check_not_merged()
        self.gradients = None
        if add_to is not None and add_to.layout != self.trained:
            raise ValueError(
                "add_to holds gradients of other parameters than those that train now: call"
                " loss_and_grads without it first"
            )

    # --- conveniences ---

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, mmap: bool = True) -> LanguageModel:
        """Load a model: a directory in the Hugging Face layout, a shipped name, or a hub id.
        mmap=False reads weights into memory that would stay mapped in their file."""
        from numgpt import formats

        return formats.load_model(name_or_path, cls, mmap)

    def save_pretrained(self, directory: str | os.PathLike, dtype: str = "float32") -> None:
        """Write config.json and model.safetensors; dtype is "float32", "float16" or "bfloat16"."""
        from numgpt import formats

        formats.save_model(self, directory, dtype)

    def save_adapter(self, directory: str | os.PathLike, name: str | None = None) -> None:
        """Write an adapter, the active one where none is named, in PEFT's layout."""
        from numgpt import formats

        formats.save_adapter(self, directory, name)

    def load_adapter(self, directory: str | os.PathLike, name: str = "default") -> Adapter:
        """Read an adapter in PEFT's layout, and make it the active one.  It trains: in PEFT it does
        so only with is_trainable=True."""
        from numgpt import formats

        return formats.load_adapter(self, directory, name)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        ids: Ids | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **options: object,
    ) -> GenerateOutput: ...

    @overload
    def generate(self, ids: Ids | None = None, **options: object) -> np.ndarray: ...

    def generate(self, ids: Ids | None = None, **options: object) -> np.ndarray | GenerateOutput:
        """Continue the prompt, which transformers' tokenizers name input_ids; see
        numgpt.generation.generate for the options.  Returns (n, T') ids."""
        from numgpt import generation

        ids = _prompt(ids, options)
        return generation.generate(self, ids, **options)  # type: ignore[call-overload,no-any-return]

    def stream(self, ids: Ids | None = None, **options: object) -> Iterator[int]:
        """Continue one prompt and yield each token as it is made; the options are those of
        `generate`."""
        from numgpt import generation

        ids = _prompt(ids, options)
        return generation.stream(self, ids, **options)  # type: ignore[arg-type]

    def score(self, context: Ids, continuations: Sequence[Ids]) -> list[Score]:
        """How probable each of several continuations is after the context: see
        numgpt.generation.score."""
        from numgpt import generation

        return generation.score(self, context, continuations)


def _prompt(ids: Ids | None, options: dict[str, object]) -> Ids:
    """The ids, by whatever name they are given."""
    if (ids is None) == ("input_ids" not in options):
        raise TypeError("generate takes the prompt's ids, once: generate(ids) or input_ids=ids")
    return options.pop("input_ids") if ids is None else ids  # type: ignore[return-value]


def _checked_objective(result: object) -> tuple[float, np.ndarray, dict[str, float]]:
    """Raises ValueError for what is not loss, dlogp and metrics."""
    if not isinstance(result, tuple) or len(result) != 3:
        raise ValueError(f"the objective returned {shown(result)}: expected loss, dlogp, metrics")
    return result
