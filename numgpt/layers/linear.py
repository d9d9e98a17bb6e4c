"""Linear layer, with the (in, out) weight layout of GPT-2 (Hugging Face's Conv1D).

    y = x W + b                              x (N, I), W (I, O), b (O,), y (N, O)

Backward. From y_no = Σ_i x_ni W_io + b_o come ∂y_no/∂x_ni = W_io, ∂y_no/∂W_io = x_ni and ∂y_no/∂b_o
= 1. The chain rule sums over the remaining index, which makes matrix products again:

    dx_ni = Σ_o dy_no W_io     dx = dy Wᵀ
    dW_io = Σ_n x_ni dy_no     dW = xᵀ dy
    db_o  = Σ_n dy_no
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import as_rows, floats
from numgpt.runtime import NOWHERE, Accumulator, Weight, matmul, over_row_blocks, read_by


class LinearCache(NamedTuple):
    x: np.ndarray | None  # (N, I); None where dweight is NOWHERE, as the weight is frozen
    weight: np.ndarray | Weight  # (I, O)
    bias: np.ndarray | None = None  # (O,)


def linear_forward(
    x: np.ndarray, weight: np.ndarray | Weight, bias: np.ndarray | None = None
) -> tuple[np.ndarray, LinearCache]:
    """x (N, I), weight (I, O), bias (O,) or None -> y (N, O), cache.

    Further axes before the last are rows too: (B, T, I) -> (B, T, O).

    >>> x, weight, bias = np.ones((3, 2)), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 0.0])
    >>> linear_forward(x, weight, bias)[0][0]
    array([4.5, 6. ])
    """
    x_rows = as_rows("x", x, floats("weight", weight, "I, O").shape[0])
    x_rows = read_by(weight, x_rows)  # the same, or rounded
    y = matmul(x_rows, weight)  # (N, I) -> (N, O)
    if bias is not None:
        over_row_blocks(lambda y: np.add(y, bias, out=y), y)
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearCache(x_rows, weight, bias)


def linear_backward(
    dy: np.ndarray,
    cache: LinearCache,
    dweight: Accumulator | None = None,
    dbias: Accumulator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dy (N, O) -> dx (N, I), dweight (I, O), dbias (O,), None without a bias.

    The parameters' gradients are new arrays, or are added to the sums that are handed over.
    """
    x, weight, bias = cache
    if dweight is None:
        dweight = Accumulator.like(weight)
    if dbias is None:
        dbias = NOWHERE if bias is None else Accumulator.like(bias)
    dy_rows = as_rows("dy", dy, weight.shape[1], None if x is None else len(x))
    dbias.add_sum(dy_rows)  # db = Σ_n dy_n
    dy_rows = read_by(weight, dy_rows)
    dweight.add_outer(x, dy_rows)  # dW = xᵀ dy
    dx = matmul(dy_rows, weight.T)  # dx = dy Wᵀ
    return dx.reshape(*dy.shape[:-1], weight.shape[0]), dweight.out, dbias.out
