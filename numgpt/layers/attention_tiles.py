"""Attention cut into tiles: some queries of some heads, with the keys that they can see.

The scores of a tile fit the cache, so that softmax and products find them there, and the half of
the scores that the causal mask hides is hardly computed. What is done in a tile is in attention.py.
The queries of a group of heads that share a KV head stand one below the other, R = G · queries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.runtime import parallel_for

# Queries of a tile: the fewer, the more of the masked half is skipped, the smaller the products.
FEWEST_QUERIES, MOST_QUERIES = 64, 128
TILE_ELEMENTS = 1 << 18  # scores of a tile, over all its heads: 1 MB in float32

Heads = tuple[slice, slice]  # some sequences of the batch, and some KV heads


class Tile(NamedTuple):
    """Which part of the arrays of a whole attention a tile has."""

    heads: Heads
    queries: slice  # of T
    keys: slice  # of S: those that the tile's last query can see

    def of_queries(self, x: np.ndarray) -> np.ndarray:
        """x (B, K, G, T, …), of queries -> (b, k, R, …); a view where G is 1."""
        part = x[(*self.heads, slice(None), self.queries)]
        return part.reshape(*part.shape[:2], -1, x.shape[-1])

    def of_keys(self, x: np.ndarray) -> np.ndarray:
        """x (B, K, S, D), of keys -> (b, k, keys, D), a view."""
        return x[(*self.heads, self.keys)]

    def put(self, x: np.ndarray, rows: np.ndarray) -> None:
        """rows (b, k, R, …) to their places in x (B, K, G, T, …)."""
        place = x[(*self.heads, slice(None), self.queries)]
        place[...] = rows.reshape(place.shape)

    def mask(self, keep: np.ndarray | None, scale: float, dtype: np.dtype) -> np.ndarray | None:
        """Dropout's m (b, k, keys, R), of keep (B, K, S, G, T); None without dropout."""
        if keep is None:
            return None
        part = keep[(*self.heads, self.keys, slice(None), self.queries)]
        return part.reshape(*part.shape[:3], -1) * dtype.type(scale)

    def hide(self, group: int, key_mask: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        """What puts -∞ in the place of the scores (b, k, keys, R) of later keys and of padding."""
        size = self.queries.stop - self.queries.start

        def hide(s: np.ndarray) -> np.ndarray:
            # Only the last, square part holds pairs in which the key comes after the query.
            square = s[:, :, -size:].reshape(*s.shape[:2], size, group, size)
            square += _later_keys(size)[:, None]
            if key_mask is not None:
                np.copyto(s, -np.inf, where=~key_mask[self.heads[0], None, self.keys, None])
            return s

        return hide


def tiles(heads: Heads, queries: int, keys: int) -> list[Tile]:
    """The tiles of these heads' T queries and S keys; the last one sees all keys."""
    edges = [*range(0, queries, _queries_of_a_tile(queries)), queries]
    return [
        Tile(heads, slice(start, stop), slice(0, keys - queries + stop))
        for start, stop in pairwise(edges)
    ]


def over_heads(body: Callable[[Heads], None], q: np.ndarray, k: np.ndarray) -> None:
    """body(heads), on all cores, for as many heads at once as have tiles that fit the cache.
    q (B, K, G, T, D), k (B, K, S, D)."""
    batch, kv_heads, group, queries, _ = q.shape
    matrices = max(1, TILE_ELEMENTS // (group * _queries_of_a_tile(queries) * k.shape[2]))
    b_step, k_step = max(1, matrices // kv_heads), min(kv_heads, matrices)
    places = [
        (slice(b, min(b + b_step, batch)), slice(h, min(h + k_step, kv_heads)))
        for b in range(0, batch, b_step)
        for h in range(0, kv_heads, k_step)
    ]
    parallel_for(lambda index: body(places[index]), len(places))


def _queries_of_a_tile(queries: int) -> int:
    return min(queries, max(FEWEST_QUERIES, min(MOST_QUERIES, queries // 4)))


@functools.cache
def _later_keys(size: int) -> np.ndarray:
    """(keys, queries): -∞ where the key comes after the query, 0 elsewhere."""
    return np.tril(np.full((size, size), -np.inf, np.float32), -1)
