"""Linear layer, with the (in, out) weight layout of GPT-2 ("Conv1D" in OpenAI's code).

    y = x W + b                              x (N, I), W (I, O), b (O,), y (N, O)

Backward. With y_no = Σ_i x_ni W_io + b_o, each partial derivative is one factor of a term, and the
sum over the remaining index is a matrix product again:

    dx_ni = Σ_o dy_no W_io     dx = dy Wᵀ
    dW_io = Σ_n x_ni dy_no     dW = xᵀ dy
    db_o  = Σ_n dy_no
"""

from __future__ import annotations

import numpy as np

from numgpt.runtime import add_matmul, matmul, over_row_blocks, sum_rows

Cache = tuple[np.ndarray, np.ndarray]


def linear_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> tuple[np.ndarray, Cache]:
    """x (N, I), weight (I, O), bias (O,) or None -> y (N, O), cache."""
    y = matmul(x, weight)  # (N, I) -> (N, O)
    if bias is not None:
        over_row_blocks(lambda y: np.add(y, bias, out=y), y)
    return y, (x, weight)


def linear_backward(
    dy: np.ndarray,
    cache: Cache,
    dweight: np.ndarray,
    dbias: np.ndarray | None = None,
    accumulate: bool = True,
) -> np.ndarray:
    """dy (N, O) -> dx (N, I); adds into dweight (I, O) and dbias (O,)."""
    x, weight = cache
    add_matmul(dweight, x.T, dy, accumulate)
    if dbias is not None:
        np.add(dbias if accumulate else 0, sum_rows(dy), out=dbias)
    return matmul(dy, weight.T)  # (N, O) -> (N, I)
