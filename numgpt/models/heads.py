"""Attention by heads: what the blocks of every family have between two projections."""

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


def split_heads(x: np.ndarray, batch: int, heads: int, parts: int = 1) -> tuple[np.ndarray, ...]:
    """(B·T, parts·H·D) -> `parts` views (B, H, T, D)."""
    time, size = len(x) // batch, x.shape[1] // (parts * heads)
    x = x.reshape(batch, time, parts * heads, size).transpose(0, 2, 1, 3)
    return tuple(x[:, heads * part : heads * (part + 1)] for part in range(parts))


def merge_heads(z: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B·T, H·D), a view of what the attention returns."""
    batch, heads, time, size = z.shape
    return z.transpose(0, 2, 1, 3).reshape(batch * time, heads * size)


class HeadsCache(NamedTuple):
    attention: AttentionCache
    pattern: np.ndarray | None  # (B, H, T, S), where a hook has put another in its place
    z: np.ndarray  # (B, H, T, D)

    def merged(self) -> np.ndarray:
        """z (N, H·D), what the projection that follows has read."""
        return merge_heads(self.z)


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_mask: np.ndarray | None,
    ctx: Context,
    hook: Hooks,
    dropout: float,
    scale: float,
) -> tuple[np.ndarray, HeadsCache]:
    """q (B, H, T, D), k and v (B, K, S, D) -> z (N, H·D), cache."""
    z, attention = attention_forward(q, k, v, scale, key_mask, dropout, ctx.rng)
    replaced = None
    if hook.wants("attn.hook_pattern"):
        pattern = attention_pattern(attention)
        replaced = hook("attn.hook_pattern", pattern)
        if replaced is pattern:
            replaced = None
        else:
            z = pattern_forward(replaced, attention)
    z = hook.heads("attn.hook_z", z)
    return merge_heads(z), HeadsCache(attention, replaced, z)


def attend_backward(
    dz: np.ndarray,
    cache: HeadsCache,
    ctx: Context,
    hook: Hooks,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """dz (N, H·D) -> dq (B, H, T, D), dk and dv (B, K, S, D), written into the arrays `out`."""
    attention, pattern = cache.attention, cache.pattern
    (dz,) = split_heads(dz, ctx.batch, cache.z.shape[1])
    dz = hook.heads("attn.hook_z", dz)
    # Where hooks only look, the usual backward runs: looking on changes no bit.
    if pattern is not None or hook.wants("attn.hook_pattern"):
        p = attention_pattern(attention) if pattern is None else pattern
        computed, dv = pattern_backward(dz, p, attention)
        dp = hook("attn.hook_pattern", computed)
        if pattern is not None or dp is not computed:
            for target, gradient in zip(out, (*scores_backward(dp, p, attention), dv), strict=True):
                target[...] = gradient
            return
    attention_backward(dz, attention, out)
