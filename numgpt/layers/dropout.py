"""Dropout (Srivastava et al. 2014, JMLR 15:1929), inverted: it scales in training, not later.

    y = x · m        m_i = 1/(1 - p) with probability 1 - p, else 0; so the mean of y is x

Backward. y is linear in x, and the very mask of the forward is its slope: dx = dy · m.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.runtime import empty_like, over_row_blocks


class Mask(NamedTuple):
    kept: np.ndarray  # m > 0, where a value is kept
    scale: float  # 1 / (1 - p)


DropoutCache = Mask | None  # None: nothing is dropped
LEVELS = 1 << 16


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator) -> Mask:
    """Which values are kept, and what they are scaled by.

    Both are those of the multiple of 2⁻¹⁶ that is nearest to p, and below 1.
    """
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = rng.integers(LEVELS, size=shape, dtype=np.uint16) >= dropped
    return Mask(kept, LEVELS / (LEVELS - dropped))


def dropout_forward(
    x: np.ndarray, p: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, DropoutCache]:
    """x (N, C) -> y (N, C), cache.  With p = 0 or without a generator (inference) y is x itself.

    >>> x = np.ones((2, 3))
    >>> y, mask = dropout_forward(x, 0.5, np.random.default_rng(0))
    >>> np.allclose(y, x * mask.kept / (1 - 0.5))
    True
    """
    if not 0 <= p < 1:
        raise ValueError(f"p={p}: expected 0 <= p < 1")
    if p == 0.0 or rng is None:
        return floats("x", x), None
    cache = dropout_mask(floats("x", x).shape, p, rng)
    return _apply(x, cache), cache


def dropout_backward(dy: np.ndarray, cache: DropoutCache) -> np.ndarray:
    """dy (N, C) -> dx (N, C)."""
    return dy if cache is None else _apply(like("dy", dy, cache.kept.shape), cache)


def _apply(x: np.ndarray, mask: Mask) -> np.ndarray:
    y = empty_like(x)

    def on_rows(x: np.ndarray, kept: np.ndarray, y: np.ndarray) -> None:
        np.multiply(mask.scale * x, kept, out=y)

    over_row_blocks(on_rows, x, mask.kept, y)
    return y
