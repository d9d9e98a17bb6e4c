"""The numbers that a formula is filled with: a few features of each token, the largest, and of a
product x · W the terms x_i W_ij that make most of the sum.

    y_j = Σ_i x_i W_ij + b_j  =  the largest terms  +  the rest as one number  +  b_j
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

TERMS = 8  # of a sum, one by one
FEATURES = 4  # of a vector that are explained
HEAD_FEATURES = 2  # of a head's


class Values(NamedTuple):
    """Elementwise: of the features with the largest results, what the result is made of."""

    kind: str  # "values"
    rows: str  # what a row is: "feature", "token"
    heads: str  # "H" or "K" where each has rows of its own, else ""
    columns: list[str]
    chosen: np.ndarray  # (T, [H,] n)
    values: np.ndarray  # (T, [H,] columns, n)


class Product(NamedTuple):
    """Sums of products: of the features with the largest results, the largest terms."""

    kind: str  # "product"
    title: str  # of the result
    rows: str  # what a row is: "feature", "key", "token"
    heads: str
    inputs: list[Input]  # what is summed over: parts, one after another
    factors: tuple[str, str]
    factor: float  # by which each product is multiplied
    chosen: np.ndarray  # (T, [H,] n)
    terms_index: np.ndarray  # (T, [H,] n, m)
    w: np.ndarray  # (T, [H,] n, m)
    terms: np.ndarray  # (T, [H,] n, m): factor · x · w
    sums: np.ndarray  # (T, [H,] 3, n): the rest, the bias, the result
    x: np.ndarray | None = None  # (T, [H,] n, m), where it is written in place of all inputs


class Input(NamedTuple):
    """A part of what a sum goes over."""

    name: str
    x: np.ndarray | None  # see `by`
    # "": x is (T, I) or (T, heads, size), the same for all heads. "head": (T, H, I), each head has
    # its own. "query": (query, H, key), of which a KV head of a key has all queries, one head that
    # shares it after another.
    by: str = ""

    def rows(self, kv_heads: int) -> np.ndarray:
        """(T, I), or by head (T, H, I)."""
        assert self.x is not None
        if self.by == "query":
            return self.x.transpose(2, 1, 0).reshape(self.x.shape[2], kv_heads, -1)
        return self.x if self.by else self.x.reshape(len(self.x), -1)


class Keys(NamedTuple):
    """Of a query, a number for each key in each of several matrices."""

    kind: str  # "keys"
    columns: list[str]
    matrices: list[np.ndarray]  # (query, H, key)
    scalars: dict[str, np.ndarray]  # (query, H) each


Table = Values | Product | Keys


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """Where the largest |x| of the last axis are, the largest first.  (…, n) -> (…, count)."""
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")
    return order[..., :count].copy()  # a view would keep all of it


def values(
    columns: Mapping[str, np.ndarray],
    rows: str = "feature",
    chosen: np.ndarray | None = None,
    heads: str = "",
) -> Values:
    """Of arrays that broadcast to the last of them, (T, [H,] n): its largest entries, or those of
    an index."""
    result = list(columns.values())[-1]
    if chosen is None:
        chosen = largest(result, HEAD_FEATURES if heads else FEATURES)
    whole = [np.broadcast_to(column, result.shape) for column in columns.values()]
    picked = [np.take_along_axis(column, chosen, axis=-1) for column in whole]
    made_of = np.stack(picked, axis=-2).astype(np.float64)
    return Values("values", rows, heads, list(columns), chosen, made_of)


def keys(columns: Mapping[str, np.ndarray], scalars: dict[str, np.ndarray]) -> Keys:
    """Matrices (H, query, key) and numbers (H, query)."""
    matrices = [matrix.swapaxes(0, 1) for matrix in columns.values()]
    by_query = {name: scalar.T for name, scalar in scalars.items()}
    return Keys("keys", list(columns), matrices, by_query)


def product(
    title: str,
    inputs: list[Input],
    w: np.ndarray,
    chosen: np.ndarray,
    result: np.ndarray,
    factors: tuple[str, str],
    rows: str = "feature",
    heads: str = "",
    bias: np.ndarray | None = None,
    factor: float = 1.0,
) -> Product:
    """The terms of result (T, [H,] n) = factor · Σ_i x (T, [H,] I) w (T, [H,] n, I) + bias, which
    are the features `chosen` of a vector."""
    kv_heads = chosen.shape[1]  # where there are any
    x = np.concatenate([part.rows(kv_heads) for part in inputs], axis=-1).astype(np.float64)
    if heads and not inputs[0].by:
        x = x[:, None]
    products = factor * (x[..., None, :] * w)  # (T, [H,] n, I)
    places = largest(products, TERMS)
    of_w, terms = (
        np.take_along_axis(np.broadcast_to(part, products.shape), places, axis=-1)
        for part in (w, products)
    )
    rest = products.sum(axis=-1) - terms.sum(axis=-1)
    sums = np.stack([rest, np.zeros(result.shape) if bias is None else bias, result], axis=-2)
    numbers = (part.astype(result.dtype) for part in (of_w, terms, sums))
    what = title, rows, heads, inputs, factors, float(factor)
    return Product("product", *what, chosen, places, *numbers)


def matrix_product(
    title: str,
    inputs: list[Input],
    matrix: np.ndarray,
    result: np.ndarray,
    bias: np.ndarray | None,
    factors: tuple[str, str],
    rows: str = "feature",
    chosen: np.ndarray | None = None,
    heads: str = "",
) -> Product:
    """result = x (T, I) matrix (I, O) + bias (O,): its largest features, or chosen ones.

    The result is (T, O), or by heads (T, H, D) with O = H · D: then each head's largest.
    """
    if chosen is None:
        chosen = largest(result, HEAD_FEATURES if heads else FEATURES)
    picked, columns = np.take_along_axis(result, chosen, axis=-1), chosen
    if heads:
        _, count, size = result.shape
        columns = chosen + size * np.arange(count)[:, None]  # (T, H, n)
    biases = None if bias is None else bias[columns]
    return product(title, inputs, matrix.T[columns], chosen, picked, factors, rows, heads, biases)
