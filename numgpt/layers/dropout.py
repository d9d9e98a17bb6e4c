"""Dropout (Srivastava et al. 2014, JMLR 15:1929), inverted: it scales in training, not later.

    y = x · m / (1 - p)        m_i = 1 with probability 1 - p, else 0; so the mean of y is x

Backward. y is linear in x, and the very mask of the forward is its slope: dx = dy · m / (1 - p).
"""

from __future__ import annotations

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.runtime import empty_like, over_row_blocks

Cache = tuple[np.ndarray, float] | None


LEVELS = 1 << 16


def dropout_mask(
    shape: tuple[int, ...], p: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """True where a value is kept, and the scale 1 / (1 - p).

    Both are those of the multiple of 2⁻¹⁶ that is nearest to p, and below 1.
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    mask = rng.integers(LEVELS, size=shape, dtype=np.uint16) >= dropped
    return mask, LEVELS / (LEVELS - dropped)


def dropout_forward(
    x: np.ndarray, p: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, Cache]:
    """x (N, C) -> y (N, C), cache.  With p = 0 or without a generator (inference) y is x itself."""
    if not 0 <= p < 1:
        raise ValueError(f"p={p}: expected 0 <= p < 1")
    if p == 0.0 or rng is None:
        return floats("x", x), None
    cache = dropout_mask(floats("x", x).shape, p, rng)
    return _apply(x, cache), cache


def dropout_backward(dy: np.ndarray, cache: Cache) -> np.ndarray:
    """dy (N, C) -> dx (N, C)."""
    return dy if cache is None else _apply(like("dy", dy, cache[0].shape), cache)


def _apply(x: np.ndarray, cache: tuple[np.ndarray, float]) -> np.ndarray:
    mask, scale = cache
    y = empty_like(x)

    def rows(x, mask, y):
        np.multiply(x, mask, out=y)
        y *= scale

    over_row_blocks(rows, x, mask, y)
    return y
