"""Matrices of weights that are no plain arrays, but are multiplied by like one.

Where a matrix W (I, O) meets an activation, three things are asked of it:

    x W      matmul(x, weight)             forward
    dy Wᵀ    matmul(dy, weight.T)          backward
    W[ids]   weight[ids]                   rows of an embedding's table

An array answers them by itself. What is stored in another way is a Weight, which `matmul` asks for
the product; whoever multiplies need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from numgpt.runtime.blocks import add_into
from numgpt.runtime.products import matmul
from numgpt.runtime.scratch import empty


class Weight:
    """W (I, O), however its numbers lie in memory."""

    shape: tuple[int, int]
    dtype: np.dtype  # of the products
    ndim = 2

    def product(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """x W.  x (N, I) -> (N, O), into `out` where it is given."""
        raise NotImplementedError

    def transposed_product(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """dy Wᵀ.  dy (N, O) -> (N, I), into `out` where it is given."""
        raise NotImplementedError

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Rows.  ids (…) -> (…, O)."""
        return np.asarray(self)[ids]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.shape}, {self.nbytes:,} bytes>"

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        raise NotImplementedError

    @property
    def T(self) -> Weight:  # noqa: N802 (as arrays have it)
        """Wᵀ, for products."""
        return Transposed(self)


class Transposed(Weight):
    """Wᵀ (O, I) of a Weight (I, O), for products."""

    def __init__(self, weight: Weight):
        self.weight = weight
        self.shape, self.dtype = weight.shape[::-1], weight.dtype

    def product(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return self.weight.transposed_product(x, out)

    def transposed_product(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        return self.weight.product(dy, out)

    @property
    def T(self) -> Weight:  # noqa: N802
        return self.weight

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        return np.asarray(self.weight, dtype).T


class SideBySide(Weight):
    """[W₁ W₂ …] (I, ΣO), of arrays W₁ (I, O₁), W₂ (I, O₂), … that lie apart in memory."""

    def __init__(self, matrices: Sequence[np.ndarray]):
        self.matrices = matrices
        edges = np.cumsum([0, *(matrix.shape[1] for matrix in matrices)]).tolist()
        self.columns = [slice(*pair) for pair in pairwise(edges)]
        self.shape, self.dtype = (len(matrices[0]), edges[-1]), matrices[0].dtype

    def product(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        out = empty((len(x), self.shape[1]), x.dtype) if out is None else out
        for columns, matrix in zip(self.columns, self.matrices, strict=True):
            out[:, columns] = matmul(x, matrix)
        return out

    def transposed_product(self, dy: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        first, *others = zip(self.columns, self.matrices, strict=True)
        out = matmul(dy[:, first[0]], first[1].T, out)
        for columns, matrix in others:
            add_into(out, matmul(dy[:, columns], matrix.T))
        return out

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        return np.concatenate(self.matrices, axis=1)
