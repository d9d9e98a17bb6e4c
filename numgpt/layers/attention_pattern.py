"""Attention by its whole matrix of probabilities, the pattern, to see or replace it.

It is attention.py's formulas without tiles, on (T, S) matrices that are all in memory; the notation
is the same:

    p = exp(s - M) / Z,  s = scale · q kᵀ + mask         y = (m · p) v
    dv = (m · p)ᵀ dy     dp = m · (dy vᵀ)
    ds = p · (dp - Σ_k dp_ik p_ik)     dq = scale · ds k     dk = scale · dsᵀ q

Each function is one line of these, so that another p, or another dp, can be put in between.
"""

from __future__ import annotations

import numpy as np

from numgpt.layers.attention import AttentionCache, grouped, mT


def attention_pattern(cache: AttentionCache) -> np.ndarray:
    """p (B, H, T, S) of an attention that was computed, before dropout.

    >>> from numgpt.layers import attention_forward
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 5, 4))
    >>> y, cache = attention_forward(q, k, v)
    >>> p = attention_pattern(cache)
    >>> np.allclose(p @ v, y) and np.allclose(p.sum(axis=-1), 1)
    True
    """
    time, keys = cache.q.shape[3], cache.k.shape[2]
    hidden = ~np.tri(time, keys, keys - time, dtype=bool)
    if cache.key_mask is not None:
        hidden = hidden | ~cache.key_mask[:, None, None, None]
    s = cache.scale * np.matmul(cache.q, mT(cache.k)[:, :, None])  # (B, K, G, T, S)
    s = np.where(hidden, -np.inf, s).astype(s.dtype)
    p = np.exp(s - cache.highest) / cache.total
    return _by_head(p)


def pattern_forward(p: np.ndarray, cache: AttentionCache) -> np.ndarray:
    """y = (m · p) v.  p (B, H, T, S) -> y (B, H, T, D)."""
    return _by_head(np.matmul(_dropped(grouped(p, cache.k.shape[1]), cache), cache.v[:, :, None]))


def pattern_backward(
    dy: np.ndarray, p: np.ndarray, cache: AttentionCache
) -> tuple[np.ndarray, np.ndarray]:
    """dy (B, H, T, D), p (B, H, T, S) -> dp (B, H, T, S), dv (B, K, S, D)."""
    dy_grouped, mp = grouped(dy, cache.k.shape[1]), _dropped(grouped(p, cache.k.shape[1]), cache)
    dp = _dropped(np.matmul(dy_grouped, mT(cache.v)[:, :, None]), cache)
    return _by_head(dp), np.matmul(mT(mp), dy_grouped).sum(axis=2)


def scores_backward(
    dp: np.ndarray, p: np.ndarray, cache: AttentionCache
) -> tuple[np.ndarray, np.ndarray]:
    """dp, p (B, H, T, S) -> dq (B, H, T, D), dk (B, K, S, D)."""
    ds = grouped(p * (dp - np.vecdot(dp, p)[..., None]), cache.k.shape[1])
    dq = cache.scale * np.matmul(ds, cache.k[:, :, None])
    dk = cache.scale * np.matmul(mT(ds), cache.q).sum(axis=2)
    return _by_head(dq), dk


def _dropped(p: np.ndarray, cache: AttentionCache) -> np.ndarray:
    """m · p.  (B, K, G, T, S) -> the same."""
    if cache.keep is None:
        return p
    m = cache.keep.transpose(0, 1, 3, 4, 2) * p.dtype.type(cache.keep_scale)
    return p * m


def _by_head(x: np.ndarray) -> np.ndarray:
    """(B, K, G, …) -> (B, H, …), a view."""
    return x.reshape(len(x), -1, *x.shape[3:])
