"""Causal scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

For each head, with S = T keys, or S > T when the queries continue a cache of S - T positions:

    s_ij = scale · q_i · k_j   for j <= i + S - T, else -∞            scale = 1/√D
    p_ij = exp(s_ij - L_i),    L_i = log Σ_j exp(s_ij)                the softmax of row i
    y_i  = Σ_j p_ij v_j

Backward. From y = p v come

    dv = pᵀ dy            dp = dy vᵀ

and from the softmax, ∂p_ij/∂s_ik = p_ij (δ_jk - p_ik), with the sum over k that this gives,
Σ_k p_ik dp_ik = dy_i · Σ_k p_ik v_k = dy_i · y_i,

    ds_ij = p_ij (dp_ij - dy_i · y_i)
    dq = scale · ds k     dk = scale · dsᵀ q

The (T, S) matrices are never whole in memory: forward and backward go through them in tiles of
queries, each tile with the keys that it can see, so the masked half is skipped as well. The
backward computes p again from q, k and the row's L, as in FlashAttention (Dao et al. 2022,
arXiv:2205.14135, algorithm 4). A tile is stored transposed, keys x queries: the softmax then runs
down its columns, which NumPy does for many queries in one instruction, while along a short last
axis `max` and `sum` take a call a row.

Dropout multiplies p by m/(1-p_drop) before the product with v; the same factor then multiplies dp.
The identity for dy_i · y_i is unchanged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from numgpt.layers.dropout import dropout_mask
from numgpt.runtime import empty, parallel_for

# Queries of a tile: the fewer, the more of the masked half is skipped, the smaller the products.
FEWEST_QUERIES, MOST_QUERIES = 64, 128
TILE_ELEMENTS = 1 << 18  # scores of a tile, over all its heads: 1 MB in float32


class Cache(NamedTuple):
    q: np.ndarray  # (B, H, T, D)
    k: np.ndarray  # (B, H, S, D)
    v: np.ndarray  # (B, H, S, D)
    y: np.ndarray  # (B, H, T, D)
    logsumexp: np.ndarray  # (B, H, 1, T)
    scale: float
    key_mask: np.ndarray | None  # (B, S)
    keep: np.ndarray | None  # (B, H, S, T)
    keep_scale: float


def attention_forward(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float | None = None,
    key_mask: np.ndarray | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, Cache]:
    """q (B, H, T, D), k and v (B, H, S, D) with S >= T -> y (B, H, T, D), cache.

    The queries are the last T of the S positions. scale defaults to 1/√D. key_mask (B, S) is False
    at padding, which no query sees; a query that sees nothing at all gets y = 0. Attention dropout
    needs a generator. The memory of y is laid out as (B, T, H, D), so that merging the heads is a
    view.
    """
    batch, heads, queries, size = q.shape
    scale = 1 / math.sqrt(size) if scale is None else scale
    y = empty((batch, queries, heads, size), q.dtype).transpose(0, 2, 1, 3)
    logsumexp = empty((batch, heads, 1, queries), q.dtype)
    keep, keep_scale = None, 1.0
    if dropout > 0.0 and rng is not None:
        keep, keep_scale = (
            dropout_mask((batch, heads, k.shape[2], queries), dropout, rng),
            1 / (1 - dropout),
        )
    cache = Cache(q, k, v, y, logsumexp, scale, key_mask, keep, keep_scale)

    def group(bh: tuple[slice, slice]) -> None:
        for rows, columns in _tiles(queries, k.shape[2]):
            s = _scores(cache, bh, rows, columns)
            # The maximum keeps exp from overflowing; a query with nothing to see has none, any
            # finite value does.
            highest = np.maximum(s.max(axis=-2, keepdims=True), np.finfo(s.dtype).min)
            s -= highest
            p = np.exp(s, out=s)
            total = np.maximum(_sum_keys(p), np.finfo(s.dtype).tiny)
            logsumexp[(*bh, slice(None), rows)] = highest + np.log(total)
            if keep is not None:
                p *= keep[(*bh, columns, rows)]
            tile = np.matmul(p.swapaxes(-1, -2), v[(*bh, columns)], out=y[(*bh, rows)])
            tile *= (keep_scale / total).swapaxes(-1, -2)

    _over_heads(group, q, k)
    return y, cache


def attention_backward(
    dy: np.ndarray, cache: Cache, out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, H, T, D) -> dq (B, H, T, D), dk, dv (B, H, S, D); written into the arrays `out` where
    given."""
    q, k, v, y, logsumexp, scale, _, keep, keep_scale = cache
    dq, dk, dv = out if out is not None else (empty(a.shape, a.dtype) for a in (q, k, v))

    def group(bh: tuple[slice, slice]) -> None:
        # The last tile sees all keys, so it writes all of dk and dv; the others add to the part
        # they see.
        for rows, columns in reversed(list(_tiles(q.shape[2], k.shape[2]))):
            last = rows.stop == q.shape[2]
            dy_tile = dy[(*bh, rows)]
            p = _scores(cache, bh, rows, columns)
            p -= logsumexp[(*bh, slice(None), rows)]
            np.exp(p, out=p)
            ds = empty(p.shape, p.dtype)
            np.matmul(v[(*bh, columns)], _transposed(dy_tile), out=ds)  # dp
            if keep is None:
                _write(dv[(*bh, columns)], p, dy_tile, add=not last)
            else:
                mask = keep[(*bh, columns, rows)] * p.dtype.type(keep_scale)
                _write(dv[(*bh, columns)], p * mask, dy_tile, add=not last)
                ds *= mask
            ds -= np.vecdot(dy_tile, y[(*bh, rows)])[..., None, :]  # dy_i · y_i
            ds *= p
            dq_tile = np.matmul(ds.swapaxes(-1, -2), k[(*bh, columns)], out=dq[(*bh, rows)])
            dq_tile *= scale
            _write(dk[(*bh, columns)], ds, q[(*bh, rows)] * q.dtype.type(scale), add=not last)

    _over_heads(group, q, k)
    return dq, dk, dv


def _tiles(queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of queries, each with the keys that its last query can see."""
    size = _tile_queries(queries)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        yield slice(start, stop), slice(0, keys - queries + stop)


def _tile_queries(queries: int) -> int:
    return min(queries, max(FEWEST_QUERIES, min(MOST_QUERIES, queries // 4)))


def _over_heads(group: Callable[[tuple[slice, slice]], None], q: np.ndarray, k: np.ndarray) -> None:
    """Call group for slices of batch and heads whose tiles of scores fit the cache, on all
    cores."""
    batch, heads, queries, _ = q.shape
    matrices = max(1, TILE_ELEMENTS // (_tile_queries(queries) * k.shape[2]))
    heads_at_once = min(heads, matrices)
    batch_at_once = max(1, matrices // heads)
    groups = [
        (slice(b, min(b + batch_at_once, batch)), slice(h, min(h + heads_at_once, heads)))
        for b in range(0, batch, batch_at_once)
        for h in range(0, heads, heads_at_once)
    ]
    parallel_for(lambda index: group(groups[index]), len(groups))


def _scores(cache: Cache, bh: tuple[slice, slice], rows: slice, columns: slice) -> np.ndarray:
    """scale · k qᵀ of a tile, (b, h, keys, queries), -∞ where a query must not look."""
    q, k = cache.q[(*bh, rows)], cache.k[(*bh, columns)]
    s = empty((*q.shape[:2], k.shape[2], q.shape[2]), q.dtype)
    np.matmul(k, _transposed(q, cache.scale), out=s)
    size = rows.stop - rows.start
    if (
        size > 1
    ):  # only the tile's last, square part holds pairs in which the key comes after the query
        s[..., -size:, :] += _later_keys(size)
    if cache.key_mask is not None:
        np.copyto(s, -np.inf, where=~cache.key_mask[bh[0], None, columns, None])
    return s


def _transposed(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale · xᵀ of each matrix, in one piece: for small ones, products then take half the time."""
    x_t = x.swapaxes(-1, -2)
    return np.multiply(x_t, x.dtype.type(scale), out=empty(x_t.shape, x.dtype))


def _sum_keys(p: np.ndarray) -> np.ndarray:
    """Σ_j p_ij for each query i.  (b, h, keys, queries) -> (b, h, 1, queries)."""
    return np.ones((1, p.shape[-2]), p.dtype) @ p  # as a product: several times faster than np.sum


@functools.cache
def _later_keys(size: int) -> np.ndarray:
    """(keys, queries): -∞ where the key comes after the query, 0 elsewhere."""
    return np.tril(np.full((size, size), -np.inf, np.float32), -1)


def _write(target: np.ndarray, a: np.ndarray, b: np.ndarray, add: bool) -> None:
    """target = a @ b, or += with add."""
    if add:
        target += a @ b
    else:
        np.matmul(a, b, out=target)
