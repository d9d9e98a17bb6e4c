"""Between rows and heads, and where each token stands: what the attention of every family needs."""

from __future__ import annotations

import numpy as np


def split_heads(x: np.ndarray, batch: int, size: int) -> np.ndarray:
    """(B·T, H·D) -> (B, H, T, D), a view."""
    time, heads = len(x) // batch, x.shape[1] // size
    return x.reshape(batch, time, heads, size).transpose(0, 2, 1, 3)


def merge_heads(y: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B·T, H·D), a view of what the attention and the rotation return."""
    batch, heads, time, size = y.shape
    return y.transpose(0, 2, 1, 3).reshape(batch * time, heads * size)


def positions_of(ids: np.ndarray, past: int, key_mask: np.ndarray | None) -> np.ndarray:
    """(B, T): the place of each token in its sequence; padding on the left does not count."""
    if key_mask is None:
        return np.broadcast_to(np.arange(past, past + ids.shape[1]), ids.shape)
    return np.maximum(np.cumsum(key_mask, axis=1) - 1, 0)[:, past:]
