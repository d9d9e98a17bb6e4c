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
backward recomputes p from q, k and the row's M and Z, as in FlashAttention (Dao et al. 2022,
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

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numgpt.layers.attention_tiles import TILE_ELEMENTS, Heads, over_heads, tiles
from numgpt.layers.checks import floats
from numgpt.layers.dropout import dropout_mask
from numgpt.layers.softmax import exponentials
from numgpt.runtime import empty

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
    highest: np.ndarray  # M (B, K, G, T, 1)
    total: np.ndarray  # Z (B, K, G, T, 1)
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
    drops = dropout > 0.0 and rng is not None
    if queries == 1 and not drops and q.size // size * k.shape[2] <= TILE_ELEMENTS:
        return _of_one_query(q, k, v, scale, key_mask)
    y = _empty_heads(q.shape, q.dtype)
    q, y_grouped = grouped(q, k.shape[1]), grouped(y, k.shape[1])
    group = q.shape[2]
    highest, total = (empty((*q.shape[:4], 1), q.dtype) for _ in range(2))
    keep, keep_scale = None, 1.0
    if drops:
        assert rng is not None
        keep, keep_scale = dropout_mask((*k.shape[:3], group, queries), dropout, rng)

    def of_heads(heads: Heads) -> None:
        for tile in tiles(heads, queries, k.shape[2]):
            m, hide = tile.mask(keep, keep_scale, q.dtype), tile.hide(group, key_mask)
            y_tile, highest_tile, total_tile = tile_forward(
                tile.of_queries(q), tile.of_keys(k), tile.of_keys(v), m, hide, scale
            )
            tile.put(y_grouped, y_tile)
            tile.put(highest, mT(highest_tile))
            tile.put(total, mT(total_tile))

    over_heads(of_heads, q, k)
    return y, AttentionCache(q, k, v, y, highest, total, scale, key_mask, keep, keep_scale)


def _of_one_query(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, key_mask: np.ndarray | None
) -> tuple[np.ndarray, AttentionCache]:
    """As attention_forward for T = 1, as in decoding: nothing is in tiles, and the softmax runs
    along the last axis, the longest."""
    q_grouped = grouped(q, k.shape[1])
    # The backward's product; the other way round OpenBLAS would copy the keys first.
    s = np.matmul(k, _transposed(q_grouped[..., 0, :], scale))
    s = np.ascontiguousarray(mT(s))  # (B, K, G, S)
    if key_mask is not None:
        np.copyto(s, -np.inf, where=~key_mask[:, None, None])
    p, highest, total = exponentials(s)
    y = (np.matmul(p, v) / total).reshape(q.shape)
    of_rows = highest[..., None], total[..., None]
    return y, AttentionCache(q_grouped, k, v, y, *of_rows, scale, key_mask, None, 1.0)


def attention_backward(
    dy: np.ndarray,
    cache: AttentionCache,
    out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, H, T, D) -> dq (B, H, T, D), dk, dv (B, K, S, D); written into the arrays `out` where
    given."""
    q, k, v, y, highest, total, scale, key_mask, keep, keep_scale = cache
    dq, dk, dv = out if out is not None else (_empty_heads(a.shape, a.dtype) for a in (y, k, v))
    dy, y, dq_grouped = (grouped(a, k.shape[1]) for a in (dy, y, dq))
    group, queries = q.shape[2:4]

    def of_heads(heads: Heads) -> None:
        last, *others = reversed(tiles(heads, queries, k.shape[2]))
        for tile in (last, *others):
            dq_tile, dk_tile, dv_tile = tile_backward(
                tile.of_queries(dy),
                tile.of_queries(q),
                tile.of_keys(k),
                tile.of_keys(v),
                tile.of_queries(y),
                mT(tile.of_queries(highest)),
                mT(tile.of_queries(total)),
                tile.mask(keep, keep_scale, q.dtype),
                tile.hide(group, key_mask),
                scale,
            )
            tile.put(dq_grouped, dq_tile)
            # The last tile sees all keys, so it writes all of dk and dv; the others add to it.
            for target, term in ((tile.of_keys(dk), dk_tile), (tile.of_keys(dv), dv_tile)):
                np.copyto(target, term) if tile is last else np.add(target, term, out=target)

    over_heads(of_heads, q, k)
    return dq, dk, dv


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    batch, heads, queries, size = q
    fits = k[0] == batch and k[3] == size and k[2] >= queries and k[1] and heads % k[1] == 0
    if not fits or v[:3] != k[:3]:
        raise ValueError(
            f"q, k, v have shapes {q}, {k}, {v}: expected (B, H, T, D), (B, K, S, D), (B, K, S, D)"
            " with S >= T and H a multiple of K"
        )


def _empty_heads(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """(B, H, T, D), laid out in memory as (B, T, H, D)."""
    batch, heads, time, size = shape
    return empty((batch, time, heads, size), dtype).transpose(0, 2, 1, 3)


def grouped(x: np.ndarray, kv_heads: int) -> np.ndarray:
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
