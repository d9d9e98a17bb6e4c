"""Embedding: a table of vectors, one row for each token (or position).

    y_n = weight[ids_n]                      ids (N,), weight (V, C), y (N, C)

It is the linear layer of one-hot rows, y = onehot(ids) weight, without ever writing the zeros.

Backward. dweight = onehot(ids)ᵀ dy: each row of dy is added to the row of the table that it came
from, and the rows of tokens that occur several times sum up,

    dweight[v] = Σ_{n: ids_n = v} dy_n

Sorting the ids brings equal ones together, so that each sum runs over consecutive rows. There is no
dx: ids are not differentiable.
"""

from __future__ import annotations

import numpy as np


def embedding_forward(ids: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ids (N,) integers in [0, V), weight (V, C) -> y (N, C), cache."""
    return weight[ids], ids


def embedding_backward(
    dy: np.ndarray, cache: np.ndarray, dweight: np.ndarray, accumulate: bool = True
) -> None:
    """dy (N, C); adds into dweight (V, C)."""
    ids = cache
    if not accumulate:
        dweight.fill(0)
    order = np.argsort(ids, kind="stable")
    tokens, starts = np.unique(ids[order], return_index=True)
    dweight[tokens] += np.add.reduceat(dy[order], starts, axis=0)
