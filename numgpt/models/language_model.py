"""What every language model offers, whatever its layers: logits, loss, gradients, text, files.

A family (gpt2.py, llama.py) subclasses LanguageModel and supplies the two pages of layer calls,
`forward` and `backward`. The conveniences at the end of the class call upwards, to the packages
`formats` and `generation`; they import them when called, so that a model by itself stays a matter
of layers.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np

from numgpt.layers import (
    IGNORE_INDEX,
    linear_cross_entropy,
    linear_log_probs_backward,
    linear_log_probs_forward,
    mean_weights,
)
from numgpt.layers.cross_entropy import LogProbsCache
from numgpt.messages import shown
from numgpt.models.config import Config
from numgpt.models.context import Context
from numgpt.models.data_parallel import Part, cut_batch
from numgpt.models.parameters import Gradients, Layout, Parameters, layout_of
from numgpt.runtime import matmul, parallel_for

Ids = Sequence[int] | Sequence[Sequence[int]] | np.ndarray
# logp (B, T) -> loss, dlogp (B, T), metrics
Objective = Callable[[np.ndarray], tuple[float, np.ndarray, dict[str, float]]]

ConfigT = TypeVar("ConfigT", bound=Config)  # of a family
CacheT = TypeVar("CacheT")  # what its backward needs
ResultT = TypeVar("ResultT")

KEPT_BYTES = 1 << 24  # of what projections read, up to which it is kept for the backward


class LanguageModel(Generic[ConfigT, CacheT]):
    """Token ids in, logits over the next token out."""

    config_class: ClassVar[type[Config]]

    def __init__(
        self,
        config: ConfigT,
        seed: int = 0,
        dtype: np.typing.DTypeLike = np.float32,
        parameters: Parameters | None = None,
    ):
        """Random weights drawn with `seed`, unless `parameters` are given.  Raises ValueError for a
        bad config."""
        if not isinstance(config, self.config_class):
            kind = self.config_class.__name__
            raise TypeError(
                f"{type(self).__name__} is made of a {kind}, not of {shown(config)}: pass {kind}(…)"
            )
        config.validate()
        self.config = config
        if parameters is None:
            parameters = Parameters.empty(self.layout(config), dtype)
            self.initialise(parameters, np.random.default_rng(seed))
        self.parameters = parameters

    @property
    def parameters(self) -> Parameters:
        """The weights, by name."""
        return self._parameters

    @parameters.setter
    def parameters(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.gradients: Gradients | None = None
        self.trained: Layout = parameters.layout  # of the gradients: what is not frozen
        self._build()

    def _build(self) -> None:
        before = set(self.__dict__)
        self.build()
        self._built = set(self.__dict__) - before

    def __getstate__(self) -> dict[str, object]:
        # What is built holds views on the parameters: a copy builds its own.
        return {name: value for name, value in self.__dict__.items() if name not in self._built}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._build()

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<{type(self).__name__}: {self.num_parameters():,} parameters, {config.layers} layers,"
            f" {config.kv_heads} KV heads, vocabulary {config.vocab_size}, context"
            f" {self.context_length}, {self.parameters.dtype}>"
        )

    # --- what a family supplies ---

    @staticmethod
    def shapes(config: ConfigT) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, in the order of the forward pass."""
        raise NotImplementedError

    def build(self) -> None:
        """Make the modules and blocks on the parameters."""
        raise NotImplementedError

    def init_std(self, name: str) -> float:
        """The standard deviation that a matrix is drawn with."""
        return self.config.initializer_range

    def forward(self, ids: np.ndarray, ctx: Context) -> tuple[np.ndarray, CacheT]:
        """ids (B, T) -> the hidden states that the unembedding reads, (N, C), and the caches for
        `backward`; with ctx.last_only those of each sequence's last token, (B, C)."""
        raise NotImplementedError

    def backward(self, dy: np.ndarray, cache: CacheT, ctx: Context, g: Gradients) -> None:
        """dy (N, C), the gradient at forward's result -> adds to the gradients."""
        raise NotImplementedError

    @property
    def unembedding(self) -> str:
        """The name of the parameter (V, C) that turns hidden states into logits."""
        raise NotImplementedError

    # --- sizes and first weights ---

    @property
    def context_length(self) -> int:
        """The most tokens that the model sees at once."""
        return self.config.context_length

    def num_parameters(self, trainable: bool = False) -> int:
        """How many weights there are, or are not frozen; a tied unembedding counts once."""
        names = self.trained if trainable else self.parameters
        return sum(self.parameters[name].size for name in names)

    @classmethod
    def layout(cls, config: ConfigT) -> Layout:
        """Where each parameter lies on the flat buffer."""
        return layout_of(cls.shapes(config))

    def initialise(self, parameters: Parameters, rng: np.random.Generator) -> None:
        """Matrices normal around 0, gains of norms 1, biases 0."""
        for name, array in parameters.items():
            if array.ndim == 2:
                rng.standard_normal(out=array, dtype=array.dtype)
                array *= self.init_std(name)
            else:
                array.fill(1 if name.endswith("weight") else 0)

    # --- what trains ---

    def freeze(self, *patterns: str) -> None:
        """Leave parameters as they are from now on: those of these names or patterns ("wte",
        "h.0.*"), without any all of them.

        What is frozen gets no gradient, and has no place in the optimizer's moments: make the
        optimizer afterwards. Raises ValueError for a pattern that fits no name.
        """
        frozen = self._matching(patterns)
        self._train(name for name in self.trained if name not in frozen)

    def unfreeze(self, *patterns: str) -> None:
        """Train parameters again: those of these names or patterns, without any all of them."""
        chosen = self._matching(patterns)
        self._train(name for name in self.parameters if name in self.trained or name in chosen)

    def _matching(self, patterns: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for pattern in patterns or ("*",):
            names = set(fnmatch.filter(self.parameters, pattern))
            if not names:
                near = difflib.get_close_matches(pattern, self.parameters, 3, cutoff=0)
                raise ValueError(f"no parameter is named {pattern!r}: there are {', '.join(near)}")
            found |= names
        return found

    def _train(self, names: Iterator[str]) -> None:
        layout = self.parameters.layout
        kept = sorted(names, key=lambda name: layout[name][0])
        if len(kept) == len(layout):
            self.trained = layout
        else:
            self.trained = layout_of({name: layout[name][1] for name in kept})
        self.gradients = None

    # --- logits, log-probabilities, loss, gradients ---

    def __call__(self, ids: Ids) -> np.ndarray:
        """ids: list, (T,) or (B, T) -> logits (B, T, V)."""
        ids = self.check_ids(ids)
        hidden, _ = self.forward(ids, Context(len(ids)))
        return self.logits(hidden).reshape(*ids.shape, -1)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden (N, C) -> (N, V)."""
        return matmul(hidden, self.parameters[self.unembedding].T)

    def log_probs(self, ids: Ids, targets: Ids) -> np.ndarray:
        """log p of each target after the ids up to its place; 0 where the target is -100.  ids,
        targets (T,) or (B, T) -> (B, T)."""
        ids, targets = self._check(ids, targets)
        logp = np.empty(ids.shape, self.parameters.dtype)

        def part_log_probs(part: Part) -> None:
            rows = part.sequences
            hidden, _ = self.forward(ids[rows], Context(len(ids[rows])))
            values, _ = linear_log_probs_forward(
                hidden, self.parameters[self.unembedding], targets[rows].ravel()
            )
            logp[rows] = values.reshape(logp[rows].shape)

        self._over_parts(part_log_probs, cut_batch(self.num_parameters(), ids.shape))
        return logp

    def loss(self, ids: Ids, targets: Ids, weights: np.typing.ArrayLike | None = None) -> float:
        """Mean cross-entropy in nats over the targets that are not -100.  ids, targets (T,) or (B,
        T).

        With weights (B, T), or what broadcasts to it: Σ weights · (-log p), not divided by
        anything, for instance by 1/n for n targets in several batches.
        """
        logp = self.log_probs(ids, targets)
        weights = self._check_weights(weights, np.atleast_2d(np.asarray(targets)))
        return -float(np.vdot(weights.astype(np.float64), logp.astype(np.float64)))

    def loss_and_grads(
        self,
        ids: Ids,
        targets: Ids,
        rng: np.random.Generator | None = None,
        *,
        weights: np.typing.ArrayLike | None = None,
        add_to: Gradients | None = None,
    ) -> tuple[float, Gradients]:
        """Loss as `loss` gives it, and its gradient by every parameter that trains, by name.

        rng switches the config's dropout on. The gradients are new, or with add_to=gradients added
        to those of a call before: one call for each part of a batch, with weights of 1/n for the n
        targets of all parts that count, gives the gradient of the whole. They are also kept as
        `model.gradients`, for the optimizer. An error on the way leaves none.
        """
        self._forget_gradients(add_to)
        ids, targets = self._check(ids, targets)
        weights = self._check_weights(weights, targets)

        def part_loss(part: Part, g: Gradients) -> float:
            rows = part.sequences
            ctx = self._training_context(ids[rows], part.rng)
            hidden, cache = self.forward(ids[rows], ctx)
            loss, dhidden, _ = linear_cross_entropy(
                hidden,
                self.parameters[self.unembedding],
                targets[rows].ravel(),
                weights[rows].ravel(),
                g.accumulator(self.unembedding),
            )
            del hidden
            self.backward(dhidden, cache, ctx, g)
            return loss

        parts = cut_batch(self.num_parameters(), ids.shape, rng)
        losses, total = self._with_gradients(part_loss, parts, add_to)
        return sum(losses), total

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

        kept = self._over_parts(part_log_probs, parts)
        loss, dlogp, metrics = objective(logp.copy())
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

        _, total = self._with_gradients(part_backward, parts, add_to)
        return float(loss), total, metrics

    def _training_context(self, ids: np.ndarray, rng: np.random.Generator | None) -> Context:
        """A pass that a backward follows.  What the projections read is kept where it is little,
        and else computed again: that costs less than the memory."""
        numbers = ids.size * self.config.layers * self.config.projected_width
        keeps_inputs = numbers * self.parameters.dtype.itemsize <= KEPT_BYTES
        return Context(len(ids), rng, keeps_caches=True, keeps_inputs=keeps_inputs)

    def _forget_gradients(self, add_to: Gradients | None) -> None:
        """Without add_to, this gives the memory of the last ones back, for the new ones to take."""
        self.gradients = None
        if add_to is not None and add_to.layout != self.trained:
            raise ValueError(
                "add_to holds gradients of other parameters than those that train now: call"
                " loss_and_grads without it first"
            )

    def _over_parts(self, body: Callable[[Part], ResultT], parts: list[Part]) -> list[ResultT]:
        return parallel_for(lambda index: body(parts[index]), len(parts))

    def _with_gradients(
        self,
        body: Callable[[Part, Gradients], ResultT],
        parts: list[Part],
        add_to: Gradients | None,
    ) -> tuple[list[ResultT], Gradients]:
        """body(part, gradients) for all parts of a batch -> results, and the sum of the
        gradients."""
        total = Gradients(self.trained, self.parameters.dtype) if add_to is None else add_to
        others = [Gradients(self.trained, self.parameters.dtype) for _ in parts[1:]]
        gradients = [total, *others]
        try:
            results = parallel_for(lambda index: body(parts[index], gradients[index]), len(parts))
        except BaseException:
            total.clear()  # some of a batch's gradients would look like all of them
            raise
        for other in others:
            total.merge(other)
        self.gradients = total
        return results, total

    # --- input checks ---

    def check_ids(self, ids: Ids, any_length: bool = False) -> np.ndarray:
        """ids as (B, T) int64.  Raises ValueError for an empty, ragged, out-of-range or, without
        any_length, too long input."""
        array = _integers("ids", ids)
        if array.shape[1] == 0 or array.shape[0] == 0:
            raise ValueError("ids are empty: give at least one token")
        if array.shape[1] > self.context_length and not any_length:
            raise ValueError(
                f"{array.shape[1]} tokens are more than the model's"
                f" {self.config.context_field}={self.context_length}: shorten the input"
            )
        self._check_range("ids", array)
        return array

    def _check(self, ids: Ids, targets: Ids) -> tuple[np.ndarray, np.ndarray]:
        """ids and targets as (B, T) int64."""
        ids = self.check_ids(ids)
        array = _integers("targets", targets)
        if array.shape != ids.shape:
            raise ValueError(
                f"targets have shape {array.shape}, ids {ids.shape}: they must be equal"
            )
        self._check_range("targets", array[array != IGNORE_INDEX])
        return ids, array

    def _check_weights(
        self, weights: np.typing.ArrayLike | None, targets: np.ndarray
    ) -> np.ndarray:
        """weights as (B, T); without any, those that make the sum of the losses their mean."""
        if weights is None:
            return mean_weights(targets, self.parameters.dtype)
        try:
            array = np.asarray(weights, self.parameters.dtype)
            return np.broadcast_to(array, targets.shape)
        except (ValueError, TypeError):
            raise ValueError(
                f"weights={shown(weights)}: expected numbers, one for each target, {targets.shape}"
            ) from None

    def _check_range(self, name: str, array: np.ndarray) -> None:
        outside = (array < 0) | (array >= self.config.vocab_size)
        if outside.any():
            raise ValueError(
                f"{name} contain {array[outside][0]}, outside the vocabulary of"
                f" {self.config.vocab_size}:"
                " was the text encoded with this model's tokenizer?"
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

    def generate(self, ids: Ids, **options: object) -> np.ndarray:
        """Continue the prompt; see numgpt.generation.generate for the options.  Returns (n, T')
        ids."""
        from numgpt import generation

        return generation.generate(self, ids, **options)  # type: ignore[arg-type]

    def stream(self, ids: Ids, **options: object) -> Iterator[int]:
        """Continue one prompt and yield each token as it is made; the options are those of
        `generate`."""
        from numgpt import generation

        return generation.stream(self, ids, **options)  # type: ignore[arg-type]


def _integers(name: str, values: Ids) -> np.ndarray:
    """(B, T) int64 from a list, (T,) or (B, T)."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} have rows of different lengths: pad them, or pass one at a time"
        ) from None
    if array.size and (array.dtype.kind not in "iu" or array.dtype == np.uint64):
        raise ValueError(f"{name} have dtype {array.dtype}: token ids are integers (int64)")
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} have shape {array.shape}: expected (T,) or (B, T)")
    return np.atleast_2d(array).astype(np.int64, copy=False)
