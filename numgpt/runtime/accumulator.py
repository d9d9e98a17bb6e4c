"""Sums that grow in place: the first contribution is written, the ones after it are added.

A parameter's gradient is a sum over everything that uses the parameter: over micro-batches, over
threads, and for a tied embedding over its two uses. Whoever contributes need not know who came
before, and nobody has to clear the memory first, which for a large model is half a gigabyte a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numgpt.runtime.blocks import add_into, sum_rows
from numgpt.runtime.products import add_matmul, matmul
from numgpt.runtime.weights import Weight


class Accumulator:
    """Σ of contributions, in the array `out`, which is undefined before the first; with out=None
    they go nowhere, so that they need not be computed.

    `names` are what the sum is a part of, `written` those that have got a contribution.
    """

    def __init__(
        self,
        out: np.ndarray | None,
        names: tuple[str, ...] = ("",),
        written: set[str] | None = None,
    ):
        self.needed = out is not None
        self.out: np.ndarray = out  # type: ignore[assignment]
        self.names = names
        self.written: set[str] = set() if written is None else written

    @classmethod
    def like(cls, array: np.ndarray | Weight) -> Accumulator:
        """An empty sum of arrays of this shape."""
        return cls(np.empty(array.shape, array.dtype))

    @property
    def T(self) -> Accumulator:  # noqa: N802 (as arrays have it)
        """The same sum, seen transposed."""
        return Accumulator(self.out.T, self.names, self.written) if self.needed else self

    def add(self, term: np.ndarray) -> None:
        """out += term."""
        if not self.needed:
            return
        if self._is_first():
            np.copyto(self.out, term)
        else:
            add_into(self.out, term)

    def add_outer(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        """out += aᵀ b = Σ_n a_n ⊗ b_n, straight into its place.  a (N, I), b (N, O), out (I, O).
        Where the sum is not needed, there may be neither."""
        if not self.needed:
            return
        if a is None or b is None:
            raise ValueError("the layer's input was not kept: its weight was frozen in the forward")
        if self._is_first():
            matmul(a.T, b, out=self.out)
        else:
            add_matmul(self.out, a.T, b)

    def add_sum(self, rows: np.ndarray) -> None:
        """out += Σ_n rows_n.  rows (N, C), out (C,)."""
        if self.needed:
            self.add(sum_rows(rows))

    def add_rows(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """out[ids_n] += rows_n for all n, where ids may repeat.  ids (N,), rows (N, C)."""
        if not self.needed:
            return
        if self._is_first():
            self.out.fill(0)
        # Sorting brings equal ids together: each sum runs over consecutive rows.
        order = np.argsort(ids, kind="stable")
        places, starts = np.unique(ids[order], return_index=True)
        self.out[places] += np.add.reduceat(rows[order], starts, axis=0)

    def _is_first(self) -> bool:
        """Whether nothing has been written yet; from now on it has."""
        first = self.written.isdisjoint(self.names)
        self.written.update(self.names)
        return first


NOWHERE = Accumulator(None)  # of what is not trained


class SumsSideBySide(Accumulator):
    """Sums that lie apart, for contributions to all of them: each takes its columns."""

    def __init__(self, sums: Sequence[tuple[slice, Accumulator]]):
        super().__init__(None)
        self.sums = sums
        self.needed = any(one.needed for _, one in sums)

    def add_outer(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        assert b is not None
        for columns, one in self.sums:
            one.add_outer(a, b[:, columns])

    def add_sum(self, rows: np.ndarray) -> None:
        for columns, one in self.sums:
            one.add_sum(rows[:, columns])
