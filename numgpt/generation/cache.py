"""KV cache: keys and values of all positions so far, so that a new token costs one position.

A position's key and value depend on earlier tokens only (the mask is causal), so they never change
once computed. The arrays are allocated once, for the longest sequence that the request can reach,
and filled from the front.
"""

from __future__ import annotations

import numpy as np

from numgpt.models.language_model import LanguageModel
from numgpt.runtime import empty


class KVCache:
    """Keys and values, each (layers, B, H, capacity, D); the first `length` positions are
    filled."""

    def __init__(self, model: LanguageModel, batch: int, capacity: int):
        layers, heads, size = model.cache_shape
        shape = (layers, batch, heads, capacity, size)
        self.keys = empty(shape, model.parameters.flat.dtype)
        self.values = empty(shape, model.parameters.flat.dtype)
        self.length = 0

    def __repr__(self) -> str:
        _, batch, _, capacity, _ = self.keys.shape
        return f"<KVCache: {self.length} of {capacity} positions, {batch} sequences>"

    def append(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in a layer's new k, v (B, H, T, D); returns all so far, (B, H, S, D), as views."""
        stop = self.length + k.shape[2]
        batch, capacity = self.keys.shape[1], self.keys.shape[3]
        if stop > capacity or len(k) != batch:
            raise ValueError(
                f"the KV cache has room for {capacity} positions of {batch} sequences, needed are"
                f" {stop} of {len(k)}: make it larger (reserve)"
            )
        keys, values = self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return keys, values

    def advance(self, positions: int) -> None:
        """Called once all layers have appended their part for these positions."""
        self.length += positions

    def truncate(self, length: int) -> None:
        """Forget all but the first positions."""
        if length < 0:
            raise ValueError(f"a KV cache can't be cut to length={length}: expected 0 or more")
        self.length = min(self.length, length)

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions, where there is less."""
        layers, batch, heads, present, size = self.keys.shape
        if capacity <= present:
            return
        shape = (layers, batch, heads, max(capacity, 2 * present), size)
        # Both or neither, should the memory not suffice.
        keys, values = (empty(shape, self.keys.dtype) for _ in range(2))
        keys[:, :, :, : self.length] = self.keys[:, :, :, : self.length]
        values[:, :, :, : self.length] = self.values[:, :, :, : self.length]
        self.keys, self.values = keys, values

    def repeat(self, times: int) -> KVCache:
        """A cache whose batch holds each sequence `times` times: one prompt, several
        continuations."""
        if times == 1:
            return self
        copy = KVCache.__new__(KVCache)
        layers, batch, *rest = self.keys.shape
        copy.length = self.length
        copy.keys = empty((layers, batch * times, *rest), self.keys.dtype)
        copy.values = empty((layers, batch * times, *rest), self.keys.dtype)
        for source, target in ((self.keys, copy.keys), (self.values, copy.values)):
            for number in range(times):
                target[:, number::times, :, : self.length] = source[:, :, :, : self.length]
        return copy
