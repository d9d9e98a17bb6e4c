"""Causal scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

For each head, with S = T keys, or S > T when the queries continue a cache of S - T positions:

    s_ij = scale · q_i · k_j   for j <= i + S - T, else -∞            scale = 1/√D
    p_ij = exp(s_ij - M_i) / Z_i                                      the softmax of row i
    M_i  = max_j s_ij,         Z_i = Σ_j exp(s_ij - M_i)
    y_i  = Σ_j p_ij v_j

Backward. From y_i = Σ_j m_ij p_ij v_j (m is dropout's mask, 0 where a pair is dropped and else
1/(1 - p_drop); without dropout 1) come

    dv_j = Σ_i m_ij p_ij dy_i            dp_ij = m_ij dy_i · v_j

and from the softmax, with ∂p_ik/∂s_ij = p_ik (δ_kj - p_ij),

    ds_ij = Σ_k dp_ik ∂p_ik/∂s_ij = p_ij (dp_ij - Σ_k dp_ik p_ik)

The sum needs no row of dp: Σ_k dp_ik p_ik = dy_i · Σ_k m_ik p_ik v_k = dy_i · y_i. At last, s being
scale · q kᵀ,

    dq_i = scale · Σ_j ds_ij k_j         dk_j = scale · Σ_i ds_ij q_i

The (T, S) matrices are never whole in memory: forward and backward go through them in tiles of
queries, each tile with the keys that it can see, so the masked half is skipped as well. The
backward computes p again from q, k and the row's M and Z, as in FlashAttention (Dao et al. 2022,
arXiv:2205.14135). They are kept apart, and not as one number M + log Z: at scores of 10⁴ float32
leaves that three decimals, an error of up to 0.05 % in p. In the code p stands for Z times the p
above, and Z divides rows of y and dy instead, which are shorter. A tile is stored transposed, keys
x queries: the softmax then runs down its columns, which NumPy does for many queries in one
instruction, while along a short last axis `max` and `sum` take a call a row.

Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) has fewer keys and values than
queries: K heads of them, each for a group of G = H/K consecutive query heads. Query head h then
looks at KV head h // G, and what reaches k and v comes from the whole group. The queries of a group
stand one below the other in a tile, R = G · T rows, so that these sums are part of its products.
With G = 1 it is the attention above.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats
from numgpt.layers.dropout import dropout_mask
from numgpt.layers.softmax import exponentials
from numgpt.runtime import empty, parallel_for

# Queries of a tile: the fewer, the more of the masked half is skipped, the smaller the products.
FEWEST_QUERIES, MOST_QUERIES = 64, 128
TILE_ELEMENTS = 1 << 18  # scores of a tile, over all its heads: 1 MB in float32

Heads = tuple[slice, slice]  # of the batch, and of the KV heads


Hide = Callable[[np.ndarray], np.ndarray]  # scores -> -∞ where a query must not look


def tile_forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, m: np.ndarray | None, hide: Hide, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q (…, R, D), k, v (…, S, D), m (…, S, R) -> y (…, R, D), M and Z (…, 1, R)."""
    s = hide(np.matmul(k, _transposed(q, scale)))  # (…, S, R)
    p, highest, total = exponentials(s, axis=-2)
    pm = p if m is None else p * m
    y = np.matmul(mT(pm), v) / mT(total)
    return y, highest, total


def tile_backward(
    dy: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    y: np.ndarray,
    highest: np.ndarray,
    total: np.ndarray,
    m: np.ndarray | None,
    hide: Hide,
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy and y (…, R, D), the rest as above -> dq (…, R, D), dk, dv (…, S, D)."""
    s = hide(np.matmul(k, _transposed(q, scale)))  # (…, S, R)
    p = np.exp(np.subtract(s, highest, out=s), out=s)
    dy_z = dy / mT(total)
    dv = np.matmul(p if m is None else p * m, dy_z)
    dp = np.matmul(v, _transposed(dy_z))
    dp = dp if m is None else dp * m
    ds = p * (dp - np.vecdot(dy_z, y)[..., None, :])
    dq = scale * np.matmul(mT(ds), k)
    dk = scale * np.matmul(ds, q)
    return dq, dk, dv


class AttentionCache(NamedTuple):
    q: np.ndarray  # (B, K, G, T, D)
    k: np.ndarray  # (B, K, S, D)
    v: np.ndarray  # (B, K, S, D)
    y: np.ndarray  # (B, H, T, D)
    highest: np.ndarray  # M (B, K, 1, G, T)
    total: np.ndarray  # Z (B, K, 1, G, T)
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
) -> tuple[np.ndarray, AttentionCache]:
    """q (B, H, T, D), k and v (B, K, S, D) with S >= T and H a multiple of K -> y (B, H, T, D),
    cache.

    The queries are the last T of the S positions. scale defaults to 1/√D. key_mask (B, S) is False
    at padding, which no query sees; a query that sees nothing at all gets y = 0. Attention dropout
    needs a generator. The memory of y is laid out as (B, T, H, D), so that merging the heads is a
    view, and so is that of the gradients.

    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 5, 4))
    >>> s = np.where(np.tri(5, dtype=bool), q @ k.swapaxes(2, 3) / np.sqrt(4), -np.inf)
    >>> p = np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
    >>> np.allclose(attention_forward(q, k, v)[0], p @ v)
    True
    """
    for name, array in (("q", q), ("k", k), ("v", v)):
        floats(name, array, "B, H, T, D")
    _check_shapes(q.shape, k.shape, v.shape)
    queries, size = q.shape[2:]
    scale = 1 / math.sqrt(size) if scale is None else scale
    y = _empty_heads(q.shape, q.dtype)
    q, y_grouped = _grouped(q, k.shape[1]), _grouped(y, k.shape[1])
    batch, kv_heads, group, time, _ = q.shape
    highest, total = (empty((batch, kv_heads, 1, group, time), q.dtype) for _ in range(2))
    keep, keep_scale = None, 1.0
    if dropout > 0.0 and rng is not None:
        keep, keep_scale = dropout_mask((*k.shape[:3], group, time), dropout, rng)
    cache = AttentionCache(q, k, v, y, highest, total, scale, key_mask, keep, keep_scale)

    def heads_at_once(bk: Heads) -> None:
        for rows, columns in _tiles(queries, k.shape[2]):
            part, keys = (*bk, slice(None), rows), (*bk, columns)
            m, hide = _mask(cache, part, columns), _hide(cache, part, columns)
            tile = tile_forward(_stacked(q[part]), k[keys], v[keys], m, hide, scale)
            _put(y_grouped, part, tile[0])
            for array, of_tile in zip((highest, total), tile[1:], strict=True):
                place = array[(*bk, slice(None), slice(None), rows)]
                place[...] = of_tile.reshape(place.shape)

    _over_heads(heads_at_once, q, k)
    return y, cache


def attention_backward(
    dy: np.ndarray,
    cache: AttentionCache,
    out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, H, T, D) -> dq (B, H, T, D), dk, dv (B, K, S, D); written into the arrays `out` where
    given."""
    q, k, v, y, highest, total, scale, *_ = cache
    dq, dk, dv = out if out is not None else (_empty_heads(a.shape, a.dtype) for a in (y, k, v))
    dy, y, dq_grouped = (_grouped(a, k.shape[1]) for a in (dy, y, dq))
    queries, keys_in_all = q.shape[3], k.shape[2]

    def heads_at_once(bk: Heads) -> None:
        # The last tile sees all keys, so it writes all of dk and dv; the others add to the part
        # they see.
        for rows, columns in reversed(list(_tiles(queries, keys_in_all))):
            part, keys = (*bk, slice(None), rows), (*bk, columns)
            of_rows = (*bk, slice(None), slice(None), rows)
            dq_tile, dk_tile, dv_tile = tile_backward(
                _stacked(dy[part]),
                _stacked(q[part]),
                k[keys],
                v[keys],
                _stacked(y[part]),
                _side_by_side(highest[of_rows]),
                _side_by_side(total[of_rows]),
                _mask(cache, part, columns),
                _hide(cache, part, columns),
                scale,
            )
            _put(dq_grouped, part, dq_tile)
            for target, term in ((dk[keys], dk_tile), (dv[keys], dv_tile)):
                if rows.stop == queries:
                    target[...] = term
                else:
                    target += term

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


def _over_heads(body: Callable[[Heads], None], q: np.ndarray, k: np.ndarray) -> None:
    """Call body for slices of batch and KV heads whose tiles of scores fit the cache, on all
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


def _hide(cache: AttentionCache, part: tuple[slice, ...], columns: slice) -> Hide:
    """What hides, in a tile's scores (b, k, keys, G · queries), later keys and padding."""
    size, group = part[-1].stop - part[-1].start, cache.q.shape[2]

    def hide(s: np.ndarray) -> np.ndarray:
        if size > 1:
            # Only the tile's last, square part holds pairs in which the key comes after the query.
            square = s[:, :, -size:].reshape(*s.shape[:2], size, group, size)
            square += _later_keys(size)[:, None]
        if cache.key_mask is not None:
            np.copyto(s, -np.inf, where=~cache.key_mask[part[0], None, columns, None])
        return s

    return hide


def _mask(cache: AttentionCache, part: tuple[slice, ...], columns: slice) -> np.ndarray | None:
    """m of a tile, (b, k, keys, G · queries); None without dropout."""
    if cache.keep is None:
        return None
    keep = cache.keep[(*part[:2], columns, *part[2:])]
    return _side_by_side(keep) * cache.q.dtype.type(cache.keep_scale)


def _empty_heads(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """(B, H, T, D), laid out in memory as (B, T, H, D)."""
    batch, heads, time, size = shape
    return empty((batch, time, heads, size), dtype).transpose(0, 2, 1, 3)


def _grouped(x: np.ndarray, kv_heads: int) -> np.ndarray:
    """(B, H, T, D) -> (B, K, G, T, D), a view."""
    batch, heads, *rest = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads, *rest)


def _transposed(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """scale · xᵀ, (…, R, D) -> (…, D, R), in one piece: products of small matrices then take half
    the time."""
    x_t = mT(x)
    return np.multiply(x_t, scale, out=np.empty(x_t.shape, x.dtype))


def mT(x: np.ndarray) -> np.ndarray:  # noqa: N802 (as the array API has it)
    """The last two axes exchanged, a view."""
    return x.swapaxes(-1, -2)


def _stacked(x: np.ndarray) -> np.ndarray:
    """(b, k, G, queries, D) -> (b, k, G · queries, D); a view where G is 1."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _put(target: np.ndarray, part: tuple[slice, ...], rows: np.ndarray) -> None:
    """Rows of a tile, (b, k, G · queries, D), to their places in (B, K, G, T, D)."""
    place = target[part]
    place[...] = rows.reshape(place.shape)


def _side_by_side(x: np.ndarray) -> np.ndarray:
    """(b, k, n, G, queries) -> (b, k, n, G · queries)."""
    return x.reshape(*x.shape[:3], -1)


@functools.cache
def _later_keys(size: int) -> np.ndarray:
    """(keys, queries): -∞ where the key comes after the query, 0 elsewhere."""
    return np.tril(np.full((size, size), -np.inf, np.float32), -1)
