"""KV cache: keys and values of all positions so far, so that a new token costs one position.

A position's key and value depend on earlier tokens only (the mask is causal), so they never change
once computed. Each sequence has a slot, filled from the front, with a length of its own: sequences
of unequal lengths, some that join later and some that leave are all the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numgpt.models.language_model import LanguageModel


class KVCache:
    """Keys and values, each (layers, slots, K, capacity, D); of slot b the first lengths[b]
    positions are filled."""

    def __init__(self, model: LanguageModel, batch: int, capacity: int):
        if batch < 1 or capacity < 1:
            raise ValueError(
                f"a KV cache of {batch} sequences of {capacity} positions: expected 1 or more"
            )
        config = model.config
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_size)
        # Zeros, as what a mask hides is multiplied by 0, and must be a number for that.
        self.keys = np.zeros(shape, model.parameters.dtype)
        self.values = np.zeros(shape, model.parameters.dtype)
        self.lengths = np.zeros(batch, np.int64)

    def __repr__(self) -> str:
        _, slots, _, capacity, _ = self.keys.shape
        return f"<KVCache: {self.length} of {capacity} positions, {slots} sequences>"

    @property
    def length(self) -> int:
        """How many positions the longest sequence fills."""
        return int(self.lengths.max(initial=0))

    def view(self, counts: np.ndarray | int = 1, first: int = 0, stop: int | None = None) -> KVView:
        """One pass over the slots from `first` up to `stop`, of counts new tokens each."""
        slots = slice(first, len(self.lengths) if stop is None else stop)
        return KVView(self, slots, np.broadcast_to(counts, len(self.lengths[slots])))

    def truncate(self, length: int, slot: int | None = None) -> None:
        """Forget all but the first positions, of one slot or of all."""
        if length < 0:
            raise ValueError(f"a KV cache can't be cut to length={length}: expected 0 or more")
        if slot is None:
            np.minimum(self.lengths, length, out=self.lengths)
        else:
            self.lengths[slot] = min(self.lengths[slot], length)

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions, where there is less."""
        present = self.keys.shape[3]
        if capacity > present:
            self.keys, self.values = self._copies(slice(None), max(capacity, 2 * present))

    def selected(self, slots: Sequence[int]) -> KVCache:
        """A cache of the sequences in these slots, in this order; one may stand there twice."""
        copy = KVCache.__new__(KVCache)
        copy.lengths = self.lengths[slots]
        copy.keys, copy.values = self._copies(slots, self.keys.shape[3])
        return copy

    def _copies(self, slots: Sequence[int] | slice, capacity: int) -> list[np.ndarray]:
        """Keys and values of these slots, with room for so many positions."""
        layers, _, heads, _, size = self.keys.shape
        shape = (layers, len(self.lengths[slots]), heads, capacity, size)
        copies, filled = [np.zeros(shape, self.keys.dtype) for _ in range(2)], slice(0, self.length)
        for source, copy in zip((self.keys, self.values), copies, strict=True):
            copy[:, :, :, filled] = source[:, slots, :, filled]
        return copies

    def move(self, source: int, target: int, cache: KVCache | None = None) -> None:
        """Put a slot's sequence, of another cache where one is given, into another slot, in place
        of the one there."""
        cache = self if cache is None else cache
        length = self.lengths[target] = cache.lengths[source]
        for ours, theirs in ((self.keys, cache.keys), (self.values, cache.values)):
            ours[:, target, :, :length] = theirs[:, source, :, :length]


class KVView:
    """What one pass reads and fills: neighbouring slots of a cache, with counts (B,) of new tokens.

    A pass takes either several tokens of sequences that are equally long so far, padded on the
    right where counts differ, or one token of each. (Slots are a slice, so that what is indexed by
    them is a view: indexing by a list would give a copy.)
    """

    def __init__(self, cache: KVCache, slots: slice, counts: np.ndarray):
        self.cache = cache
        self.slots = slots
        self.counts = counts
        self.lengths = cache.lengths[slots]  # (B,): the positions that were filled before
        self._measure()

    def _measure(self) -> None:
        """What is the same for all layers."""
        self.longest = int(self.lengths.max())
        self.equal = bool((self.lengths == self.longest).all())
        self.full = self.equal and bool((self.counts == self.counts[0]).all())  # without padding

    def append(
        self, layer: int, k: np.ndarray, v: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Take in a layer's new k, v (B, K, T, D) -> all so far, (B, K, S, D), as views, and where
        they are filled, (B, S); None where they are everywhere."""
        batch, _, time, _ = k.shape
        lengths, longest, capacity = self.lengths, self.longest, self.cache.keys.shape[3]
        stop = longest + time
        if stop > capacity or batch != len(lengths):
            raise ValueError(
                f"the KV cache has room for {capacity} positions of {len(lengths)} sequences,"
                f" needed are {stop} of {batch}: make it larger (reserve)"
            )
        keys = self.cache.keys[layer, self.slots, :, :stop]
        values = self.cache.values[layer, self.slots, :, :stop]
        if self.equal:
            keys[:, :, longest:], values[:, :, longest:] = k, v
        elif time == 1:
            rows = np.arange(batch)
            keys[rows, :, lengths], values[rows, :, lengths] = k[:, :, 0], v[:, :, 0]
        else:
            raise ValueError(
                f"{time} tokens after sequences of lengths {lengths.tolist()}: several tokens at"
                " once need equal lengths"
            )
        if self.full and time == self.counts[0]:
            return keys, values, None
        return keys, values, np.arange(stop) < (lengths + self.counts)[:, None]

    def advance(self) -> None:
        """Called once all layers have appended their part for these tokens."""
        self.lengths += self.counts
        self._measure()
