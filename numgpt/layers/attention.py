"""Causal scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

For each head, with S = T keys, or S > T when the queries continue a cache of S - T positions:

    s_ij = scale · q_i · k_j   for j <= i + S - T, else -∞            scale = 1/√D
    p_ij = exp(s_ij - M_i) / Z_i                                      the softmax of row i
    M_i  = max_j s_ij,         Z_i = Σ_j exp(s_ij - M_i)
    y_i  = Σ_j p_ij v_j

Backward. From y = p v come

    dv = pᵀ dy            dp = dy vᵀ

and from the softmax, ∂p_ij/∂s_ik = p_ij (δ_jk - p_ik), with the sum over k that this gives,
Σ_k p_ik dp_ik = dy_i · Σ_k p_ik v_k = dy_i · y_i,

    ds_ij = p_ij (dp_ij - dy_i · y_i)
    dq = scale · ds k     dk = scale · dsᵀ q

The (T, S) matrices are never whole in memory: forward and backward go through them in tiles of
queries, each tile with the keys that it can see, so the masked half is skipped as well. The
backward computes p again from q, k and the row's M and Z, as in FlashAttention (Dao et al. 2022,
arXiv:2205.14135, algorithm 4). It keeps the two apart, where that has M + log Z: at scores of 10⁴
float32 has no room for log Z behind the point. Z divides rows of y and dy, which are shorter than
those of p. A tile is stored transposed, keys x queries: the softmax then runs
down its columns, which NumPy does for many queries in one instruction, while along a short last
axis `max` and `sum` take a call a row.

Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) has fewer keys and values than
queries: K heads of them, each for a group of G = H/K consecutive query heads. Query head h then
looks at key head κ = h // G, and what reaches k and v comes from the whole group,

    dk_κ = scale · Σ_h ds_hᵀ q_h     dv_κ = Σ_h p_hᵀ dy_h     over the h of group κ

The queries of a group stand side by side in one product, (keys, G · queries), so that these sums
are part of it. With G = 1 it is the attention above.

Dropout multiplies p by m/(1-p_drop), m being 0 where a pair is dropped and else 1, before the
product with v; the same factor then multiplies dp.
The identity for dy_i · y_i is unchanged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats
from numgpt.layers.dropout import dropout_mask
from numgpt.runtime import empty, parallel_for

# Queries of a tile: the fewer, the more of the masked half is skipped, the smaller the products.
FEWEST_QUERIES, MOST_QUERIES = 64, 128
TILE_ELEMENTS = 1 << 18  # scores of a tile, over all its heads: 1 MB in float32


class Cache(NamedTuple):
    q: np.ndarray  # (B, K, G, T, D)
    k: np.ndarray  # (B, K, S, D)
    v: np.ndarray  # (B, K, S, D)
    y: np.ndarray  # (B, H, T, D)
    highest: np.ndarray  # M (B, K, G, T)
    total: np.ndarray  # Z (B, K, G, T)
    scale: float
    key_mask: np.ndarray | None  # (B, S)
    keep: np.ndarray | None  # (B, K, S, G, T)
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
    """q (B, H, T, D), k and v (B, K, S, D) with S >= T and H a multiple of K -> y (B, H, T, D),
    cache.

    The queries are the last T of the S positions. scale defaults to 1/√D. key_mask (B, S) is False
    at padding, which no query sees; a query that sees nothing at all gets y = 0. Attention dropout
    needs a generator. The memory of y is laid out as (B, T, H, D), so that merging the heads is a
    view, and so is that of the gradients.
    """
    for name, array in (("q", q), ("k", k), ("v", v)):
        floats(name, array, "B, H, T, D")
    _check_shapes(q.shape, k.shape, v.shape)
    queries, size = q.shape[2:]
    scale = 1 / math.sqrt(size) if scale is None else scale
    y = _empty_heads(q.shape, q.dtype)
    q, y_grouped = _grouped(q, k.shape[1]), _grouped(y, k.shape[1])
    highest, total = empty(q.shape[:4], q.dtype), empty(q.shape[:4], q.dtype)
    keep, keep_scale = None, 1.0
    if dropout > 0.0 and rng is not None:
        keep, keep_scale = dropout_mask((*k.shape[:3], *q.shape[2:4]), dropout, rng)
    cache = Cache(q, k, v, y, highest, total, scale, key_mask, keep, keep_scale)

    def heads_at_once(bk: tuple[slice, slice]) -> None:
        for rows, columns in _tiles(queries, k.shape[2]):
            s = _scores(cache, bk, rows, columns)
            part = (*bk, slice(None), rows)
            # The maximum keeps exp from overflowing; a query with nothing to see has none, any
            # finite value does.
            tile_highest = np.maximum(s.max(axis=-2, keepdims=True), np.finfo(s.dtype).min)
            s -= tile_highest
            p = np.exp(s, out=s)  # times Z
            # The highest score contributes exp(0): only a query with nothing to see has less.
            tile_total = np.maximum(_sum_keys(p), 1)
            highest[part] = tile_highest.reshape(highest[part].shape)
            total[part] = tile_total.reshape(total[part].shape)
            if keep is not None:
                p *= _side_by_side(keep[(*bk, columns, slice(None), rows)])
            tile = y_grouped[part]
            np.matmul(_rows_of(p, tile), v[(*bk, None, columns)], out=tile)
            tile *= (keep_scale / tile_total).reshape(*tile.shape[:4], 1)

    _over_heads(heads_at_once, q, k)
    return y, cache


def attention_backward(
    dy: np.ndarray, cache: Cache, out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, H, T, D) -> dq (B, H, T, D), dk, dv (B, K, S, D); written into the arrays `out` where
    given."""
    q, k, v, y, highest, total, scale, _, keep, keep_scale = cache
    dq, dk, dv = out if out is not None else (_empty_heads(a.shape, a.dtype) for a in (y, k, v))
    dy, y, dq_grouped = (_grouped(a, k.shape[1]) for a in (dy, y, dq))
    queries, keys = q.shape[3], k.shape[2]

    def heads_at_once(bk: tuple[slice, slice]) -> None:
        # The last tile sees all keys, so it writes all of dk and dv; the others add to the part
        # they see.
        for rows, columns in reversed(list(_tiles(queries, keys))):
            last = rows.stop == queries
            part = (*bk, slice(None), rows)
            q_tile, dq_tile = q[part], dq_grouped[part]
            dy_tile = np.divide(
                dy[part], total[part][..., None], out=empty(q_tile.shape, q_tile.dtype)
            )
            p = _scores(cache, bk, rows, columns)
            p -= _queries_side_by_side(highest[part])
            np.exp(p, out=p)  # times Z, as dy is divided by it
            ds = empty(p.shape, p.dtype)
            np.matmul(v[(*bk, columns)], _transposed(dy_tile), out=ds)  # dp
            if keep is None:
                _write(dv[(*bk, columns)], p, _stacked(dy_tile), add=not last)
            else:
                mask = _side_by_side(keep[(*bk, columns, slice(None), rows)])
                mask = mask * p.dtype.type(keep_scale)
                _write(dv[(*bk, columns)], p * mask, _stacked(dy_tile), add=not last)
                ds *= mask
            ds -= _queries_side_by_side(np.vecdot(dy_tile, y[part]))  # dy_i · y_i
            ds *= p
            np.matmul(_rows_of(ds, dq_tile), k[(*bk, None, columns)], out=dq_tile)
            dq_tile *= scale
            scaled = q_tile * q.dtype.type(scale)
            _write(dk[(*bk, columns)], ds, _stacked(scaled), add=not last)

    _over_heads(heads_at_once, q, k)
    return dq, dk, dv


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    batch, heads, queries, size = q
    fits = k[0] == batch and k[3] == size and k[2] >= queries and k[1] and heads % k[1] == 0
    if not fits or v[:3] != k[:3]:
        raise ValueError(
            f"q, k, v have shapes {q}, {k}, {v}: expected (B, H, T, D), (B, K, S, D), (B, K, S, D)"
            " with S >= T and H a multiple of K"
        )


def _tiles(queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of queries, each with the keys that its last query can see."""
    size = _tile_queries(queries)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        yield slice(start, stop), slice(0, keys - queries + stop)


def _tile_queries(queries: int) -> int:
    return min(queries, max(FEWEST_QUERIES, min(MOST_QUERIES, queries // 4)))


def _over_heads(body: Callable[[tuple[slice, slice]], None], q: np.ndarray, k: np.ndarray) -> None:
    """Call body for slices of batch and key heads whose tiles of scores fit the cache, on all
    cores."""
    batch, heads, group, queries, _ = q.shape
    matrices = max(1, TILE_ELEMENTS // (group * _tile_queries(queries) * k.shape[2]))
    heads_at_once = min(heads, matrices)
    batch_at_once = max(1, matrices // heads)
    parts = [
        (slice(b, min(b + batch_at_once, batch)), slice(h, min(h + heads_at_once, heads)))
        for b in range(0, batch, batch_at_once)
        for h in range(0, heads, heads_at_once)
    ]
    parallel_for(lambda index: body(parts[index]), len(parts))


def _scores(cache: Cache, bk: tuple[slice, slice], rows: slice, columns: slice) -> np.ndarray:
    """scale · k qᵀ of a tile, (b, k, keys, G · queries), -∞ where a query must not look."""
    q, k = cache.q[(*bk, slice(None), rows)], cache.k[(*bk, columns)]
    batch, heads, group, size, _ = q.shape
    s = empty((batch, heads, k.shape[2], group * size), q.dtype)
    np.matmul(k, _transposed(q, cache.scale), out=s)
    if size > 1:
        # Only the tile's last, square part holds pairs in which the key comes after the query.
        square = s[:, :, -size:].reshape(batch, heads, size, group, size)
        square += _later_keys(size)[:, None]
    if cache.key_mask is not None:
        np.copyto(s, -np.inf, where=~cache.key_mask[bk[0], None, columns, None])
    return s


def _empty_heads(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """(B, H, T, D), laid out in memory as (B, T, H, D)."""
    batch, heads, time, size = shape
    return empty((batch, time, heads, size), dtype).transpose(0, 2, 1, 3)


def _grouped(x: np.ndarray, key_heads: int) -> np.ndarray:
    """(B, H, T, D) -> (B, K, G, T, D), a view."""
    batch, heads, *rest = x.shape
    return x.reshape(batch, key_heads, heads // key_heads, *rest)


def _transposed(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale · x with the queries of a group side by side, (b, k, G, queries, D) -> (b, k, D,
    G · queries), in one piece: for small ones, products then take half the time."""
    batch, heads, group, queries, size = x.shape
    x_t = x.transpose(0, 1, 4, 2, 3)
    copy = np.multiply(x_t, x.dtype.type(scale), out=empty(x_t.shape, x.dtype))
    return copy.reshape(batch, heads, size, group * queries)


def _stacked(x: np.ndarray) -> np.ndarray:
    """(b, k, G, queries, D) -> (b, k, G · queries, D); a view where G is 1."""
    batch, heads, group, queries, size = x.shape
    return x.reshape(batch, heads, group * queries, size)


def _side_by_side(x: np.ndarray) -> np.ndarray:
    """(b, k, keys, G, queries) -> (b, k, keys, G · queries)."""
    return x.reshape(*x.shape[:3], -1)


def _queries_side_by_side(x: np.ndarray) -> np.ndarray:
    """One number a query, (b, k, G, queries) -> (b, k, 1, G · queries)."""
    return x.reshape(*x.shape[:2], 1, -1)


def _rows_of(s: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """(b, k, keys, G · queries) -> (b, k, G, queries, keys), a view for products that give
    `tile`."""
    batch, heads, group, queries, _ = tile.shape
    return s.reshape(batch, heads, -1, group, queries).transpose(0, 1, 3, 4, 2)


def _sum_keys(p: np.ndarray) -> np.ndarray:
    """Σ_j p_ij for each query i.  (b, k, keys, queries) -> (b, k, 1, queries)."""
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
