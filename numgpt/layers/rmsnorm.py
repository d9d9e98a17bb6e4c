"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

    x̂ = x / sqrt(mean(x²) + eps)        y = weight · x̂        over the last axis

It is layer normalisation without the mean and without the bias: the paper finds that the scale is
what matters.

Backward. Let g = dy · weight be the gradient at x̂ and rstd = 1 / sqrt(mean(x²) + eps). x reaches x̂
directly, ∂x̂_i/∂x_j = rstd · δ_ij, and through rstd, ∂rstd/∂x_j = -rstd³ x_j / C, which gives
∂x̂_i/∂x_j = -rstd · x̂_i · x̂_j / C. Multiplying by g_i and summing over i,

    dx = rstd · (g - x̂ · mean(g · x̂))
    dweight = Σ_rows dy · x̂
"""

from __future__ import annotations

import numpy as np

from numgpt.layers.checks import rows as as_rows
from numgpt.layers.checks import vector
from numgpt.runtime import Accumulator, empty, empty_like, mean_product, over_row_blocks

Cache = tuple[np.ndarray, np.ndarray, np.ndarray]  # x̂, rstd, weight


def rmsnorm_forward(
    x: np.ndarray, weight: np.ndarray, eps: float = 1e-6
) -> tuple[np.ndarray, Cache]:
    """Normalise each row of x.  x (N, C), weight (C,) -> y (N, C), cache.

    Further axes before the last are rows too.
    """
    x_rows = as_rows("x", x, len(vector("weight", weight)))
    shape, x = x.shape, x_rows
    x_hat, y, rstd = empty_like(x), empty_like(x), empty((len(x), 1), x.dtype)

    def rows(x, x_hat, y, rstd):
        rstd[:] = 1 / np.sqrt(mean_product(x, x) + x.dtype.type(eps))
        np.multiply(x, rstd, out=x_hat)
        np.multiply(x_hat, weight, out=y)

    over_row_blocks(rows, x, x_hat, y, rstd)
    return y.reshape(shape), (x_hat, rstd, weight)


def rmsnorm_output(cache: Cache) -> np.ndarray:
    """y (N, C) of the forward, computed again from x̂: so a model need not keep both."""
    x_hat, _, weight = cache
    y = empty_like(x_hat)
    over_row_blocks(lambda x_hat, y: np.multiply(x_hat, weight, out=y), x_hat, y)
    return y


def rmsnorm_backward(
    dy: np.ndarray, cache: Cache, dweight: Accumulator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """dy (N, C) -> dx (N, C), dweight (C,): a new array, or added to the sum that is handed
    over."""
    x_hat, rstd, weight = cache
    dweight = Accumulator.like(weight) if dweight is None else dweight
    dy_rows = as_rows("dy", dy, len(weight), len(x_hat))
    shape, dy = dy.shape, dy_rows
    dx = empty_like(x_hat)

    def rows(dy, x_hat, rstd, dx):
        np.multiply(dy, x_hat, out=dx)  # borrowed for the product under dweight's sum
        dweight_part = np.ones(len(dy), dy.dtype) @ dx
        g = np.multiply(dy, weight, out=empty_like(dy))
        np.multiply(x_hat, mean_product(g, x_hat), out=dx)
        np.subtract(g, dx, out=dx)
        dx *= rstd
        return dweight_part

    parts = over_row_blocks(rows, dy, x_hat, rstd, dx)
    dweight.add(sum(parts))
    return dx.reshape(shape), dweight.out
