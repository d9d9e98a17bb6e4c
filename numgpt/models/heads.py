"""Between rows and heads: what the attention of every family needs."""

from __future__ import annotations

import numpy as np


def split_heads(x: np.ndarray, batch: int, heads: int, parts: int = 1) -> tuple[np.ndarray, ...]:
    """(B·T, parts·H·D) -> `parts` views (B, H, T, D)."""
    time, size = len(x) // batch, x.shape[1] // (parts * heads)
    x = x.reshape(batch, time, parts * heads, size).transpose(0, 2, 1, 3)
    return tuple(x[:, heads * part : heads * (part + 1)] for part in range(parts))


def merge_heads(z: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B·T, H·D), a view of what the attention returns."""
    batch, heads, time, size = z.shape
    return z.transpose(0, 2, 1, 3).reshape(batch * time, heads * size)
