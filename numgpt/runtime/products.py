"""Matrix products, written straight into their place, in the BLAS's own threads.

A transposed operand (`x.T`) costs nothing: BLAS reads it as it lies in memory. The BLAS cuts a
product by the number of its threads, so the last bits of a result may change with that number, and
with nothing else.
"""

from __future__ import annotations

import numpy as np

from numgpt.runtime.scratch import empty

PANEL_BYTES = 1 << 22  # of a partial product that is added to a result: it stays in the L3 cache


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a (M, K) @ b (K, N) -> (M, N), into `out` where it is given."""
    if out is None:
        out = empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    return np.matmul(a, b, out=out)


def add_matmul(total: np.ndarray, a: np.ndarray, b: np.ndarray, accumulate: bool = True) -> None:
    """total += a @ b; with accumulate=False, total = a @ b.  a (M, K), b (K, N), total (M, N)."""
    if not accumulate:
        np.matmul(a, b, out=total)
        return
    rows = max(1, PANEL_BYTES // (total.shape[1] * total.itemsize))
    for start in range(0, len(total), rows):
        panel = slice(start, start + rows)
        total[panel] += matmul(a[panel], b)
