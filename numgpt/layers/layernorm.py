"""Layer normalisation (Ba, Kiros & Hinton 2016, arXiv:1607.06450).

    x̂ = (x - mean(x)) / sqrt(var(x) + eps)        y = weight · x̂ + bias        over the last axis

Backward. Let g = dy · weight be the gradient at x̂ and rstd = 1 / sqrt(var + eps), so that x̂ =
(x - mean) · rstd. x reaches x̂ along three paths, each with its contribution to ∂x̂_i/∂x_j:

    directly                     rstd · δ_ij
    through the mean             -rstd / C
    through rstd                 (x_i - mean) · ∂rstd/∂x_j = -rstd · x̂_i · x̂_j / C

For the last, var = mean((x - mean)²) has ∂var/∂x_j = 2 (x_j - mean) / C: its own path through the
mean vanishes, as Σ_k (x_k - mean) = 0. So ∂rstd/∂x_j = -½ rstd³ ∂var/∂x_j = -rstd² x̂_j / C.
Multiplying the sum of the three by g_i and adding up over i,

    dx = rstd · (g - mean(g) - x̂ · mean(g · x̂))
    dweight = Σ_rows dy · x̂            dbias = Σ_rows dy
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import as_rows, vector
from numgpt.runtime import Accumulator, empty, empty_like, mean_product, over_row_blocks, sum_rows


class LayerNormCache(NamedTuple):
    x_hat: np.ndarray  # x̂ (N, C)
    rstd: np.ndarray  # (N, 1)
    weight: np.ndarray  # (C,)
    bias: np.ndarray  # (C,)


def layernorm_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, LayerNormCache]:
    """Normalise each row of x.  x (N, C), weight (C,), bias (C,) -> y (N, C), cache.

    Further axes before the last are rows too.

    >>> x, weight, bias = np.random.default_rng(0).normal(size=(3, 2, 5))
    >>> x_hat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    >>> y, _ = layernorm_forward(x, weight[0], bias[0])
    >>> np.allclose(y, weight[0] * x_hat + bias[0])
    True
    """
    x_rows = as_rows("x", x, len(vector("weight", weight)))
    x_hat, y, rstd = empty_like(x_rows), empty_like(x_rows), empty((len(x_rows), 1), x.dtype)

    def on_rows(x: np.ndarray, x_hat: np.ndarray, y: np.ndarray, rstd: np.ndarray) -> None:
        centred = x - _mean(x)
        # The mean is rounded at the scale of x, so that a small mean is left. It counts where a row
        # hardly varies: subtract it too.
        centred -= _mean(centred)
        rstd[:] = 1 / np.sqrt(mean_product(centred, centred) + eps)
        np.multiply(centred, rstd, out=x_hat)
        np.add(weight * x_hat, bias, out=y)

    over_row_blocks(on_rows, x_rows, x_hat, y, rstd)
    return y.reshape(x.shape), LayerNormCache(x_hat, rstd, weight, bias)


def layernorm_output(cache: LayerNormCache) -> np.ndarray:
    """y (N, C) of the forward, recomputed from x̂: so a model need not keep both."""
    x_hat, _, weight, bias = cache
    y = empty_like(x_hat)
    over_row_blocks(lambda x_hat, y: np.add(weight * x_hat, bias, out=y), x_hat, y)
    return y


def layernorm_backward(
    dy: np.ndarray,
    cache: LayerNormCache,
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
    dx = empty_like(x_hat)

    def on_rows(
        dy: np.ndarray, x_hat: np.ndarray, rstd: np.ndarray, dx: np.ndarray
    ) -> tuple[np.ndarray | float, np.ndarray | float]:
        # from y = weight · x̂ + bias:
        of_weight = sum_rows(dy * x_hat) if dweight.needed else 0.0
        of_bias = sum_rows(dy) if dbias.needed else 0.0
        g = dy * weight
        # from x̂ = (x - mean(x)) · rstd:
        np.multiply(rstd, g - _mean(g) - x_hat * mean_product(g, x_hat), out=dx)
        return of_weight, of_bias

    sums = over_row_blocks(on_rows, dy_rows, x_hat, rstd, dx)
    dweight.add(sum(of_weight for of_weight, _ in sums))
    dbias.add(sum(of_bias for _, of_bias in sums))
    return dx.reshape(dy.shape), dweight.out, dbias.out


def _mean(x: np.ndarray) -> np.ndarray:
    """Mean of each row.  (N, C) -> (N, 1)."""
    # A sum over a short last axis is a product with a vector: BLAS does it several times faster
    # than np.mean.
    return x @ _averaging(x.shape[1], x.dtype)


@functools.cache
def _averaging(width: int, dtype: np.dtype) -> np.ndarray:
    """(C, 1), each 1/C."""
    return np.full((width, 1), 1 / width, dtype)
