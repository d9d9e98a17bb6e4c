"""What every language model offers, whatever its layers: logits, loss, gradients, text, files.

A family (gpt2.py, llama.py) subclasses LanguageModel and supplies the two pages of layer calls,
`forward` and `backward`. The conveniences at the end of the class call outward, to the rooms
`formats` and `generation`; they import them when called, so that a model by itself stays a matter
of layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from numgpt.layers import IGNORE_INDEX, linear_cross_entropy
from numgpt.models.data_parallel import cut_batch
from numgpt.models.parameters import Layout, Parameters, layout_of
from numgpt.runtime import add_into, matmul, parallel_for

Ids = Sequence[int] | Sequence[Sequence[int]] | np.ndarray


class LanguageModel:
    """Token ids in, logits over the next token out."""

    config_class: ClassVar[type]
    context_field: ClassVar[str]  # of the config: the most tokens that the model sees at once

    def __init__(
        self,
        config: Any,
        seed: int = 0,
        dtype: np.typing.DTypeLike = np.float32,
        parameters: Parameters | None = None,
    ):
        """Random weights drawn with `seed`, unless `parameters` are given.  Raises ValueError for a
        bad config."""
        config.validate()
        self.config = config
        if parameters is None:
            parameters = Parameters.empty(self.layout(config), dtype)
            self.initialise(parameters, np.random.default_rng(seed))
        self.parameters = parameters
        self.gradients: Parameters | None = None

    def __repr__(self) -> str:
        layers, heads, _ = self.cache_shape
        return (
            f"<{type(self).__name__}: {self.num_parameters():,} parameters, {layers} layers,"
            f" {heads} key heads, vocabulary {self.config.vocab_size}, context"
            f" {self.context_length}, {self.parameters.flat.dtype}>"
        )

    # --- what a family supplies ---

    @staticmethod
    def shapes(config: Any) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, in the order of the forward pass."""
        raise NotImplementedError

    def initial_deviation(self, name: str) -> float:
        """The standard deviation that a matrix is drawn with."""
        return self.config.initializer_range

    def forward(
        self,
        ids: np.ndarray,
        rng: np.random.Generator | None = None,
        kv_cache: Any = None,
        key_mask: np.ndarray | None = None,
        keep_caches: bool = False,
        last_only: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """ids (B, T) -> what the head multiplies, (B·T, C), and the caches for `backward`, if they
        are to be kept.

        rng switches dropout on. kv_cache (numgpt.generation.KVCache) holds the keys and values of
        earlier positions and takes in the new ones. key_mask (B, S) is False at padding. last_only
        leaves out what only the earlier positions' logits need; the result is then (B, C).
        """
        raise NotImplementedError

    def backward(
        self, dx: np.ndarray, caches: Any, gradients: Parameters, accumulate: bool
    ) -> None:
        """dx (B·T, C), the gradient at forward's result -> adds into the gradients."""
        raise NotImplementedError

    @property
    def head(self) -> str:
        """The name of the parameter (V, C) that turns the last hidden state into logits."""
        raise NotImplementedError

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(layers, heads, D) of the keys and values that a KV cache holds for each position."""
        raise NotImplementedError

    # --- sizes and first weights ---

    @property
    def context_length(self) -> int:
        """The most tokens that the model sees at once."""
        return getattr(self.config, self.context_field)

    def num_parameters(self) -> int:
        """How many weights there are; a tied head counts once."""
        return sum(array.size for array in self.parameters.values())

    @classmethod
    def layout(cls, config: Any) -> Layout:
        """Where each parameter lies on the flat buffer."""
        return layout_of(cls.shapes(config))

    def initialise(self, parameters: Parameters, rng: np.random.Generator) -> None:
        """Matrices normal around 0, gains of norms 1, biases 0."""
        for name, array in parameters.items():
            if array.ndim == 2:
                rng.standard_normal(out=array, dtype=array.dtype)
                array *= self.initial_deviation(name)
            else:
                array.fill(1 if name.endswith("weight") else 0)

    # --- logits, loss, gradients ---

    def __call__(self, ids: Ids) -> np.ndarray:
        """ids: list, (T,) or (B, T) -> logits (B, T, V)."""
        ids = self.check_ids(ids)
        x, _ = self.forward(ids)
        return self.logits(x).reshape(*ids.shape, -1)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """x (N, C) -> (N, V)."""
        return matmul(x, self.parameters[self.head].T)

    def loss(self, ids: Ids, targets: Ids) -> float:
        """Mean cross-entropy in nats over the targets that are not -100.  ids, targets (T,) or (B,
        T)."""
        ids = self.check_ids(ids)
        targets = self._check_targets(targets, ids)
        shares = cut_batch(self.num_parameters(), targets)

        def share_loss(index: int) -> float:
            rows = shares[index].sequences
            x, _ = self.forward(ids[rows])
            loss, _ = linear_cross_entropy(x, self.parameters[self.head], targets[rows].ravel())
            return loss * shares[index].weight

        return sum(parallel_for(share_loss, len(shares)))

    def loss_and_grads(
        self,
        ids: Ids,
        targets: Ids,
        rng: np.random.Generator | None = None,
        accumulate: bool = False,
        scale: float = 1.0,
    ) -> tuple[float, Parameters]:
        """Loss as `loss` gives it, and its gradient by every parameter, under the parameters'
        names.

        rng switches the config's dropout on. With accumulate=True the gradients of scale · loss are
        added to those of the call before, in the same arrays: one call for each part of a batch,
        with scale = n_k/n where part k has n_k of the n targets that count, makes one step on the
        whole. Otherwise the gradients are new arrays, also kept as
        `model.gradients`.
        """
        ids = self.check_ids(ids)
        targets = self._check_targets(targets, ids)
        accumulate = accumulate and self.gradients is not None
        # An error on the way leaves no gradients at all, rather than some. Without accumulate, this
        # also gives the memory of the last ones back, for the next to take.
        total, self.gradients = self.gradients if accumulate else None, None
        if total is None:
            total = self._empty_gradients()
        shares = cut_batch(self.num_parameters(), targets, rng)
        gradients = [total, *(self._empty_gradients() for _ in shares[1:])]

        def share_loss(index: int) -> float:
            rows, weight, share_rng = shares[index]
            x, caches = self.forward(ids[rows], share_rng, keep_caches=True)
            loss, dx = linear_cross_entropy(
                x,
                self.parameters[self.head],
                targets[rows].ravel(),
                dweight=gradients[index][self.head],
                accumulate=accumulate and index == 0,
                scale=scale * weight,
            )
            del x
            self.backward(dx, caches, gradients[index], accumulate and index == 0)
            return loss * weight

        loss = sum(parallel_for(share_loss, len(shares)))
        for other in gradients[1:]:
            add_into(total.flat, other.flat)
        self.gradients = total
        return loss, total

    def _empty_gradients(self) -> Parameters:
        return Parameters.empty(self.parameters.layout, self.parameters.flat.dtype)

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
                f" {self.context_field}={self.context_length}: shorten the input"
            )
        self._check_range("ids", array)
        return array

    def _check_targets(self, targets: Ids, ids: np.ndarray) -> np.ndarray:
        array = _integers("targets", targets)
        if array.shape != ids.shape:
            raise ValueError(
                f"targets have shape {array.shape}, ids {ids.shape}: they must be equal"
            )
        self._check_range("targets", array[array != IGNORE_INDEX])
        return array

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

    def generate(self, ids: Ids, **options: Any) -> np.ndarray:
        """Continue the prompt; see numgpt.generation.generate for the options.  Returns (n, T')
        ids."""
        from numgpt import generation

        return generation.generate(self, ids, **options)

    def stream(self, ids: Ids, **options: Any) -> Iterator[int]:
        """Continue one prompt and yield each token as it is made; the options are those of
        `generate`."""
        from numgpt import generation

        return generation.stream(self, ids, **options)


def _integers(name: str, values: Ids) -> np.ndarray:
    """(B, T) int64 from a list, (T,) or (B, T)."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} have rows of different lengths: pad them, or pass one at a time"
        ) from None
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} have dtype {array.dtype}: token ids are integers")
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} have shape {array.shape}: expected (T,) or (B, T)")
    return np.atleast_2d(array).astype(np.int64, copy=False)
