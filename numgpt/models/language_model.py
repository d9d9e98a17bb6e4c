"""What every language model is asked for: logits, loss, gradients, activations, text, files.

All of it stands on one pair of passes over the blocks, `run`: hidden states, and the way back from
their gradient to those of the parameters. The output layer, `model.unembedding`, makes of hidden
states logits, a loss, or log-probabilities, and has their gradient:

    hidden, back = model.run(ids)                                              # forward
    loss, dhidden = model.unembedding.cross_entropy(hidden, targets, weights, g)
    back(dhidden, g)                                                           # backward

To lessons/gpt.py this page adds frozen weights, other losses, and that a small model's batch is cut
over the cores.

The conveniences at the end of the class call upwards, to the packages `formats` and `generation`;
they import them when called, so that a model by itself stays a matter of layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from numgpt.layers import TokenStatistics
from numgpt.messages import shown
from numgpt.models import hooks as hook_runs
from numgpt.models import scores as score_runs
from numgpt.models.base import BaseModel, CacheT, ConfigT
from numgpt.models.context import Context
from numgpt.models.data_parallel import Part, add_gradients, cut_batch
from numgpt.models.hooks import Hook
from numgpt.models.inputs import Ids, ids_array, targets_array, weights_array
from numgpt.models.kv_cache import KVView
from numgpt.models.lora import Adapter
from numgpt.models.parameters import Gradients
from numgpt.runtime import add_into, parallel_for

if TYPE_CHECKING:
    from numgpt.generation import GenerateOutput, Score

# logp (B, T) -> loss, dlogp (B, T), metrics; with entropies, values as value_and_grads says
Objective = Callable[..., tuple[float, object, dict[str, float]]]
Back = Callable[[np.ndarray, Gradients], None]  # dhidden (N, C), gradients that are added to

KEPT_BYTES = 1 << 24  # up to which the projections' inputs are kept for the backward


class LanguageModel(BaseModel[ConfigT, CacheT]):
    """Token ids in, logits over the next token out."""

    # --- the passes over the blocks ---

    def run(
        self,
        ids: Ids,
        rng: np.random.Generator | None = None,
        hooks: Mapping[str, Hook] | None = None,
        backward_hooks: Mapping[str, Hook] | None = None,
    ) -> tuple[np.ndarray, Back]:
        """The hidden states that the unembedding reads, and the way back.  ids (B, T) -> hidden
        (N, C), back.

        back(dhidden (N, C), gradients) adds the gradients of what trains to `gradients`; it works
        once, as it lets go of what the forward pass has kept. rng switches the config's dropout on;
        hooks are those of `loss_and_grads`. A small model's batch is cut over the cores.
        """
        ids = self.check_ids(ids)
        hooked = hooks is not None or backward_hooks is not None
        parts = cut_batch(self.num_parameters(), ids.shape, rng, most=1 if hooked else None)
        contexts = [self._training_context(ids[part.sequences], part.rng) for part in parts]
        if hooked:
            contexts[0].look_on(hooks or {}, backward_hooks or {}, self.hook_names)
        hidden, caches = self._forward(ids, parts, contexts)
        shape, first_trained = hidden.shape, contexts[0].first_trained

        def back(dhidden: np.ndarray, gradients: Gradients) -> None:
            if dhidden.shape != shape:
                raise ValueError(f"dhidden has shape {dhidden.shape}: expected {shape}")
            if len(gradients):
                self.adapters.check_not_merged()
            if self.first_trained(gradients.layout) < first_trained:
                raise ValueError("gradients of what was frozen in this run: run again")
            if not caches:
                raise RuntimeError("back works once: run the model again")
            kept = caches.copy()
            caches.clear()
            dys = [dhidden[part.rows(ids.shape[1])] for part in parts]
            add_gradients(self.backward, [*zip(dys, kept, contexts, strict=True)], gradients)

        return hidden, back

    def hidden(
        self,
        ids: np.ndarray,
        kv: KVView | None = None,
        last_only: bool = False,
        hooks: Mapping[str, Hook] | None = None,
    ) -> np.ndarray:
        """As `run` for what goes forward only, which keeps nothing.  ids (B, T), checked; with kv
        those that continue what its cache has -> (N, C), or with last_only those of each sequence's
        last token, (B, C)."""
        last_only_in = self.config.layers - 1 if last_only else None
        if kv is None and hooks is None:
            parts = cut_batch(self.num_parameters(), ids.shape)
            sizes = (len(ids[part.sequences]) for part in parts)
            contexts = [Context(size, last_only_in=last_only_in) for size in sizes]
            return self._forward(ids, parts, contexts)[0]
        ctx = Context(len(ids), kv=kv, last_only_in=last_only_in)
        if hooks is not None:
            ctx.look_on(hooks, {}, self.hook_names)
        return self.forward(ids, ctx)[0]

    def _forward(
        self, ids: np.ndarray, parts: Sequence[Part], contexts: Sequence[Context]
    ) -> tuple[np.ndarray, list[CacheT]]:
        """`forward` for all parts of a batch, on all cores -> hidden states, and a cache each."""
        if len(parts) == 1:
            hidden, cache = self.forward(ids, contexts[0])
            return hidden, [cache]
        passes = [(ids[part.sequences], ctx) for part, ctx in zip(parts, contexts, strict=True)]
        results = parallel_for(lambda number: self.forward(*passes[number]), len(passes))
        return np.concatenate([y for y, _ in results]), [cache for _, cache in results]

    def _training_context(self, ids: np.ndarray, rng: np.random.Generator | None) -> Context:
        """A pass that a backward follows.  What the projections read (2C + F numbers a token and
        block, beside z) is kept where it is little, and else recomputed: that costs less than the
        memory."""
        read = 2 * self.config.width + self.config.inner_width
        numbers = ids.size * self.config.layers * read
        return Context(
            len(ids),
            rng,
            for_backward=True,
            saves_inputs=numbers * self.parameters.dtype.itemsize <= KEPT_BYTES,
            first_trained=self.first_trained(self.trained),
        )

    # --- logits, log-probabilities, loss, gradients ---

    def check_ids(self, ids: Ids, any_length: bool = False) -> np.ndarray:
        """ids as (B, T) int64.  Raises ValueError for an empty, ragged, out-of-range or, without
        any_length, too long input."""
        return ids_array(ids, self.config, any_length)

    def __call__(self, ids: Ids) -> np.ndarray:
        """ids: list, (T,) or (B, T) -> logits (B, T, V)."""
        ids = self.check_ids(ids)
        return self.unembedding.logits(self.hidden(ids)).reshape(*ids.shape, -1)

    def log_probs(self, ids: Ids, targets: Ids, temperature: float = 1.0) -> np.ndarray:
        """log p of each target after the ids up to its place, at a temperature; 0 where the target
        is -100.  ids, targets (T,) or (B, T) -> (B, T)."""
        ids, targets = self._check(ids, targets)
        logp, _ = self.unembedding.log_probs(self.hidden(ids), targets.ravel(), temperature)
        return logp.reshape(ids.shape)

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
        the gradients by them. What follows a replaced activation sees the replacement; the function
        whose output it was takes its derivative at what it had computed.

        statistics are added to: how many targets count, how many are the likeliest token, and the
        entropy of the predictions.
        """
        self.gradients = None
        ids, targets = self._check(ids, targets)
        w = weights_array(weights, targets, self.parameters.dtype).ravel()
        seen = TokenStatistics()
        with self.sums(add_to) as g:
            hidden, back = self.run(ids, rng, hooks, backward_hooks)
            told = None if statistics is None else seen
            loss, dhidden = self.unembedding.cross_entropy(hidden, targets.ravel(), w, g, told)
            back(dhidden, g)
        if statistics is not None:
            statistics.add(seen)
        return loss, g

    def value_and_grads(
        self,
        ids: Ids,
        targets: Ids,
        objective: Objective,
        rng: np.random.Generator | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        values: bool = False,
        add_to: Gradients | None = None,
    ) -> tuple[float, Gradients, dict[str, float]]:
        """Value, gradients and metrics of an objective that sees all log-probabilities before it
        knows their gradients (numgpt.objectives).

        objective(logp (B, T)) -> loss, dlogp (B, T), metrics, with logp as `log_probs` gives it;
        with entropy=True objective(logp, entropies) -> loss, (dlogp, dentropies), metrics, and with
        values=True the score head's values (B, T) come last. The rest is as in `loss_and_grads`.
        """
        self.gradients = None
        ids, targets = self._check(ids, targets)
        head = score_runs.head_of(self) if values else None
        with self.sums(add_to) as g:
            hidden, back = self.run(ids, rng)
            logp, cache = self.unembedding.log_probs(hidden, targets.ravel(), temperature, entropy)
            seen = {"dlogp": logp}
            if cache.entropy is not None:
                seen["dentropies"] = cache.entropy
            if head is not None:
                seen["dvalues"] = head.scores(hidden)
            told = objective(*(array.reshape(ids.shape).copy() for array in seen.values()))
            loss, by, metrics = _checked(told, ids.shape, list(seen), logp.dtype)
            entropies = by.get("dentropies")
            dhidden = self.unembedding.log_probs_backward(by["dlogp"], cache, g, entropies)
            if head is not None:
                add_into(dhidden, head.backward(by["dvalues"], hidden, g))
            back(dhidden, g)
        return loss, g, metrics

    def _check(self, ids: Ids, targets: Ids) -> tuple[np.ndarray, np.ndarray]:
        """ids and targets as (B, T) int64."""
        ids = self.check_ids(ids)
        return ids, targets_array(targets, ids, self.config)

    @contextmanager
    def sums(self, add_to: Gradients | None) -> Iterator[Gradients]:
        """What a call adds its gradients to, and the model's afterwards. The last ones are
        forgotten, so that the new ones can take their memory. An error clears them: the gradients
        of some of a batch would look like those of all of it."""
        self.adapters.check_not_merged()
        self.gradients = None
        if add_to is not None and add_to.layout != self.trained:
            raise ValueError(
                "add_to holds gradients of other parameters than those that train now: call"
                " loss_and_grads without it first"
            )
        g = Gradients(self.trained, self.parameters.dtype) if add_to is None else add_to
        try:
            yield g
        except BaseException:
            g.clear()
            raise
        self.gradients = g

    # --- what happens inside ---

    @property
    def hook_names(self) -> list[str]:
        """The places where hooks see activations and gradients, in the order of the forward pass:
        TransformerLens's names for them."""
        of_blocks = [name for block in self.blocks for name in block.hook_names]
        return [*self.embedding_hooks, *of_blocks, "ln_final.hook_normalized"]

    values = score_runs.values
    scores = score_runs.scores
    scores_and_grads = score_runs.scores_and_grads
    run_with_hooks = hook_runs.run_with_hooks
    run_with_cache = hook_runs.run_with_cache
    run_with_gradients = hook_runs.run_with_gradients
    hidden_states = hook_runs.hidden_states
    attentions = hook_runs.attentions

    # --- conveniences ---

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, mmap: bool = True, dtype: str = "float32"
    ) -> LanguageModel:
        """Load a model: a directory in the Hugging Face layout, a shipped name, or a hub id.
        mmap=False reads weights into memory that would stay mapped in their file; dtype is what
        matrices are kept as, see numgpt.load."""
        from numgpt import formats

        return formats.load_model(name_or_path, cls, mmap, dtype)

    def save_pretrained(self, directory: str | os.PathLike, dtype: str | None = None) -> None:
        """Write config.json and model.safetensors; dtype is "float32", "float16" or "bfloat16",
        which transformers reads too. Without one a model in fewer bits is written as it is kept, to
        be mapped when numgpt loads it so, any other in float32."""
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
        self, ids: Ids | None = None, *, return_dict_in_generate: Literal[True], **options: object
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


def _checked(
    result: object, shape: tuple[int, ...], names: Sequence[str], dtype: np.dtype
) -> tuple[float, dict[str, np.ndarray], dict[str, float]]:
    """An objective's loss, its derivatives (N,) by their names, and metrics.  Raises ValueError for
    what is none of that."""
    expected = names[0] if len(names) == 1 else f"({', '.join(names)})"
    if not isinstance(result, tuple) or len(result) != 3:
        wrong = f"the objective returned {shown(result)}"
        raise ValueError(f"{wrong}: expected loss, {expected}, metrics")
    loss, derivatives, metrics = result
    each = (derivatives,) if len(names) == 1 else derivatives
    if not isinstance(each, tuple) or len(each) != len(names):
        raise ValueError(f"the objective returned {shown(derivatives)}: expected {expected}")
    by = {name: np.asarray(derivative) for name, derivative in zip(names, each, strict=True)}
    for name, array in by.items():
        if array.shape != shape:
            raise ValueError(
                f"the objective's {name} has shape {array.shape}, logp {shape}: they must be equal"
            )
    return float(loss), {n: a.astype(dtype, copy=False).ravel() for n, a in by.items()}, metrics
