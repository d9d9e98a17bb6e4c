"""ReLU, the rectified linear unit (Nair & Hinton 2010).

    y = max(x, 0)

Backward. The slope is 1 where x > 0 and 0 elsewhere (at x = 0 too, as everyone has it): dx = dy ·
[x > 0].
"""

from __future__ import annotations

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.runtime import empty_like, over_row_blocks


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (N, F) -> y (N, F), cache.

    >>> relu_forward(np.array([[-1.0, 2.0]]))[0]
    array([[0., 2.]])
    """
    y = empty_like(floats("x", x))
    over_row_blocks(lambda x, y: np.maximum(x, 0, out=y), x, y)
    return y, y


def relu_backward(dy: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dy (N, F) -> dx (N, F)."""
    y, dx = cache, empty_like(like("dy", dy, cache.shape))
    over_row_blocks(lambda y, dy, dx: np.multiply(dy, y > 0, out=dx), y, dy, dx)
    return dx
