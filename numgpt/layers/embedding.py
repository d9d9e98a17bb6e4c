"""Embedding: a table of vectors, one row for each token (or position).

    y_n = weight[ids_n]                      ids (N,), weight (V, C), y (N, C)

It is the linear layer of one-hot rows, y = onehot(ids) weight, without ever writing the zeros.

Backward. dweight = onehot(ids)ᵀ dy: each row of dy is added to the row of the table that it came
from, and the rows of tokens that occur several times sum up,

    dweight[v] = Σ_{n: ids_n = v} dy_n

There is no dx: ids are not differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.layers import checks
from numgpt.layers.checks import floats
from numgpt.runtime import Accumulator


class EmbeddingCache(NamedTuple):
    ids: np.ndarray  # (N,)
    shape: tuple[int, int]  # (V, C)


def embedding_forward(ids: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, EmbeddingCache]:
    """ids (N,) integers in [0, V), weight (V, C) -> y (N, C), cache.  Ids of another shape give
    rows of that shape.

    >>> weight, ids = np.arange(6.0).reshape(3, 2), np.array([2, 0, 2])
    >>> np.array_equal(embedding_forward(ids, weight)[0], np.eye(3)[ids] @ weight)
    True
    """
    floats("weight", weight, "V, C")
    return weight[checks.ids("ids", ids, len(weight))], EmbeddingCache(ids, weight.shape)


def embedding_backward(
    dy: np.ndarray, cache: EmbeddingCache, dweight: Accumulator | None = None
) -> np.ndarray:
    """dy (N, C) -> dweight (V, C): a new array, or added to the sum that is handed over."""
    ids, (vocabulary, width) = cache
    checks.like("dy", dy, (*ids.shape, width))
    if dweight is None:
        dweight = Accumulator(np.empty((vocabulary, width), dy.dtype))
    dweight.add_rows(ids.ravel(), dy.reshape(-1, width))
    return dweight.out
