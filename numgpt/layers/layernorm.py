"""Layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450).

    x̂ = (x - mean(x)) / sqrt(var(x) + eps)        y = weight · x̂ + bias        over the last axis

Backward. Let g = dy · weight be the gradient at x̂ and rstd = 1 / sqrt(var + eps). x reaches x̂
along three paths:

    directly                              ∂x̂_i/∂x_j = rstd · δ_ij
    through the mean                      ∂x̂_i/∂x_j = -rstd / C
    through the variance                  ∂x̂_i/∂x_j = -rstd · x̂_i · x̂_j / C

(for the last: ∂rstd/∂x_j = -rstd³ (x_j - mean) / C = -rstd² x̂_j / C). Multiplying by g_i and
summing over i,

    dx = rstd · (g - mean(g) - x̂ · mean(g · x̂))
    dweight = Σ_rows dy · x̂            dbias = Σ_rows dy
"""

from __future__ import annotations

import functools

import numpy as np

from numgpt.layers.checks import rows as as_rows
from numgpt.layers.checks import vector
from numgpt.runtime import Accumulator, empty, empty_like, mean_product, over_row_blocks

Cache = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x̂, rstd, weight, bias


def layernorm_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, Cache]:
    """Normalise each row of x.  x (N, C), weight (C,), bias (C,) -> y (N, C), cache.

    Further axes before the last are rows too.
    """
    x_rows = as_rows("x", x, len(vector("weight", weight)))
    shape, x = x.shape, x_rows
    x_hat, y, rstd = empty_like(x), empty_like(x), empty((len(x), 1), x.dtype)

    def rows(x, x_hat, y, rstd):
        np.subtract(x, _mean(x), out=x_hat)
        # The mean is rounded to the size of x. What that leaves is as large as x̂'s own mean, which
        # counts where a row hardly varies.
        x_hat -= _mean(x_hat)
        rstd[:] = 1 / np.sqrt(mean_product(x_hat, x_hat) + x.dtype.type(eps))
        x_hat *= rstd
        _scale_and_shift(x_hat, weight, bias, out=y)

    over_row_blocks(rows, x, x_hat, y, rstd)
    return y.reshape(shape), (x_hat, rstd, weight, bias)


def layernorm_output(cache: Cache) -> np.ndarray:
    """y (N, C) of the forward, computed again from x̂: so a model need not keep both."""
    x_hat, _, weight, bias = cache
    y = empty_like(x_hat)
    over_row_blocks(lambda x_hat, y: _scale_and_shift(x_hat, weight, bias, out=y), x_hat, y)
    return y


def layernorm_backward(
    dy: np.ndarray,
    cache: Cache,
    dweight: Accumulator | None = None,
    dbias: Accumulator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (N, C) -> dx (N, C), dweight (C,), dbias (C,).

    The parameters' gradients are new arrays, or are added to the sums that are handed over.
    """
    x_hat, rstd, weight, _ = cache
    dweight = Accumulator.like(weight) if dweight is None else dweight
    dbias = Accumulator.like(weight) if dbias is None else dbias
    dy_rows = as_rows("dy", dy, len(weight), len(x_hat))
    shape, dy = dy.shape, dy_rows
    dx = empty_like(x_hat)

    def rows(dy, x_hat, rstd, dx):
        ones = np.ones(len(dy), dy.dtype)
        np.multiply(dy, x_hat, out=dx)  # borrowed for the product under dweight's sum
        dweight_part = ones @ dx
        g = np.multiply(dy, weight, out=empty_like(dy))
        np.multiply(x_hat, mean_product(g, x_hat), out=dx)
        np.subtract(g, dx, out=dx)
        dx -= _mean(g)
        dx *= rstd
        return dweight_part, ones @ dy

    parts = over_row_blocks(rows, dy, x_hat, rstd, dx)
    dweight.add(sum(part for part, _ in parts))
    dbias.add(sum(part for _, part in parts))
    return dx.reshape(shape), dweight.out, dbias.out


def _scale_and_shift(x_hat, weight, bias, out: np.ndarray) -> None:
    """weight · x̂ + bias, into `out`."""
    np.multiply(x_hat, weight, out=out)
    out += bias


def _mean(x: np.ndarray) -> np.ndarray:
    """Mean of each row.  (N, C) -> (N, 1)."""
    # A sum over a short last axis is a product with a vector: BLAS does it several times faster
    # than np.mean.
    return x @ _averaging(x.shape[1], x.dtype)


@functools.cache
def _averaging(width: int, dtype: np.dtype) -> np.ndarray:
    """(C, 1), each 1/C."""
    return np.full((width, 1), 1 / width, dtype)
