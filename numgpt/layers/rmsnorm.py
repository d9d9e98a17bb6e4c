"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

    x̂ = x / sqrt(mean(x²) + eps)        y = weight · x̂        over the last axis

It is layer normalisation without the mean and without the bias: the paper finds that only
invariance to the scale of x matters, not invariance to its mean.

Backward. Let g = dy · weight be the gradient at x̂ and rstd = 1 / sqrt(mean(x²) + eps). x reaches x̂
directly, ∂x̂_i/∂x_j = rstd · δ_ij, and through rstd, ∂rstd/∂x_j = -rstd³ x_j / C, which gives
∂x̂_i/∂x_j = -rstd · x̂_i · x̂_j / C. Multiplying by g_i and summing over i,

    dx = rstd · (g - x̂ · mean(g · x̂))
    dweight = Σ_rows dy · x̂
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import as_rows, vector
from numgpt.runtime import Accumulator, empty, empty_like, mean_product, over_row_blocks, sum_rows


class RMSNormCache(NamedTuple):
    x_hat: np.ndarray  # x̂ (N, C)
    rstd: np.ndarray  # (N, 1)
    weight: np.ndarray  # (C,)


def rmsnorm_forward(
    x: np.ndarray, weight: np.ndarray, eps: float = 1e-6
) -> tuple[np.ndarray, RMSNormCache]:
    """Normalise each row of x.  x (N, C), weight (C,) -> y (N, C), cache.

    Further axes before the last are rows too.

    >>> x, weight = np.random.default_rng(0).normal(size=(2, 2, 5))
    >>> x_hat = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6)
    >>> np.allclose(rmsnorm_forward(x, weight[0])[0], weight[0] * x_hat)
    True
    """
    x_rows = as_rows("x", x, len(vector("weight", weight)))
    x_hat, y, rstd = empty_like(x_rows), empty_like(x_rows), empty((len(x_rows), 1), x.dtype)

    def on_rows(x: np.ndarray, x_hat: np.ndarray, y: np.ndarray, rstd: np.ndarray) -> None:
        rstd[:] = 1 / np.sqrt(mean_product(x, x) + eps)
        np.multiply(x, rstd, out=x_hat)
        np.multiply(x_hat, weight, out=y)

    over_row_blocks(on_rows, x_rows, x_hat, y, rstd)
    return y.reshape(x.shape), RMSNormCache(x_hat, rstd, weight)


def rmsnorm_output(cache: RMSNormCache) -> np.ndarray:
    """y (N, C) of the forward, recomputed from x̂: so a model need not keep both."""
    x_hat, _, weight = cache
    y = empty_like(x_hat)
    over_row_blocks(lambda x_hat, y: np.multiply(x_hat, weight, out=y), x_hat, y)
    return y


def rmsnorm_backward(
    dy: np.ndarray, cache: RMSNormCache, dweight: Accumulator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """dy (N, C) -> dx (N, C), dweight (C,): a new array, or added to the sum that is handed
    over."""
    x_hat, rstd, weight = cache
    dweight = Accumulator.like(weight) if dweight is None else dweight
    dy_rows = as_rows("dy", dy, len(weight), len(x_hat))
    dx = empty_like(x_hat)

    def on_rows(
        dy: np.ndarray, x_hat: np.ndarray, rstd: np.ndarray, dx: np.ndarray
    ) -> np.ndarray | float:
        # from y = weight · x̂:
        of_weight = sum_rows(dy * x_hat) if dweight.needed else 0.0
        g = dy * weight
        # from x̂ = x · rstd:
        np.multiply(rstd, g - x_hat * mean_product(g, x_hat), out=dx)
        return of_weight

    dweight.add(sum(over_row_blocks(on_rows, dy_rows, x_hat, rstd, dx)))
    return dx.reshape(dy.shape), dweight.out
