"""Attention by heads: what an attention branch has between its two projections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers import (
    attention_backward,
    attention_forward,
    attention_pattern,
    pattern_backward,
    pattern_forward,
    scores_backward,
)
from numgpt.layers.attention import AttentionCache
from numgpt.models.context import Context
from numgpt.models.hooks import Hooks


def split_heads(x: np.ndarray, batch: int, heads: int) -> np.ndarray:
    """(B·T, H·D) -> (B, H, T, D), a view."""
    time, size = len(x) // batch, x.shape[1] // heads
    return x.reshape(batch, time, heads, size).transpose(0, 2, 1, 3)


def merge_heads(z: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B·T, H·D), a view of what the attention returns."""
    batch, heads, time, size = z.shape
    return z.transpose(0, 2, 1, 3).reshape(batch * time, heads * size)


class HeadsCache(NamedTuple):
    attention: AttentionCache
    replaced: np.ndarray | None  # (B, H, T, S), what a hook put in the place of the pattern
    z: np.ndarray  # (B, H, T, D)

    def merged_z(self) -> np.ndarray:
        """z (N, H·D), what the projection that follows has read."""
        return merge_heads(self.z)


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    key_mask: np.ndarray | None,
    dropout: float,
    ctx: Context,
    hook: Hooks,
) -> tuple[np.ndarray, HeadsCache]:
    """q (B, H, T, D), k and v (B, K, S, D) -> z (N, H·D), cache."""
    z, attention = attention_forward(q, k, v, scale, key_mask, dropout, ctx.rng)
    replaced = None
    if hook.has("hook_pattern"):
        computed = attention_pattern(attention)
        pattern = hook("hook_pattern", computed)
        if pattern is not computed:
            replaced, z = pattern, pattern_forward(pattern, attention)
    z = hook.heads("hook_z", z)
    return merge_heads(z), HeadsCache(attention, replaced, z)


def attend_backward(
    dz: np.ndarray,
    cache: HeadsCache,
    ctx: Context,
    hook: Hooks,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """dz (N, H·D) -> dq (B, H, T, D), dk and dv (B, K, S, D), written into the arrays `out`.

    Where a hook has replaced the pattern, dv = replacedᵀ dz, as v met the replacement, and the
    softmax takes its derivative at the pattern that it had computed.
    """
    attention, replaced, z = cache
    dz = hook.heads("hook_z", split_heads(dz, ctx.batch, z.shape[1]))
    # Where hooks only look, the usual backward runs: looking on changes no bit.
    if replaced is not None or hook.has("hook_pattern"):
        computed = attention_pattern(attention)
        dp, dv = pattern_backward(dz, computed if replaced is None else replaced, attention)
        dp_seen = hook("hook_pattern", dp)
        if replaced is not None or dp_seen is not dp:
            dq, dk = scores_backward(dp_seen, computed, attention)
            for target, gradient in zip(out, (dq, dk, dv), strict=True):
                target[...] = gradient
            return
    attention_backward(dz, attention, out)
