"""Element-wise work in blocks of rows that stay in the cache, on all cores.

`0.5 * x * (1 + np.tanh(u))` on a whole activation walks through main memory once per operation. The
same formula on some rows at a time finds its operands in the cache after the first walk. The blocks
can't be much smaller than they are: between two NumPy calls a thread needs Python's lock, and where
calls last only some microseconds, two threads spend their time waiting for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numgpt.runtime.threads import parallel_for

BLOCK_BYTES = 1 << 21  # of all arrays of a block together: a few blocks fit the L3 cache
# With less work than this a second thread loses more than it gains: it takes some 0.1 ms to start.
FEWEST_BLOCKS = 4
SMALL = 1 << 20  # bytes; a first array smaller than this is never cut


def over_row_blocks(body: Callable[..., Any], *arrays: np.ndarray) -> list[Any]:
    """Call body(*blocks) for matching blocks of rows of the arrays; returns the results in order.

    All arrays have the same length along axis 0. A block is a view, so the body writes its results
    in place. The cut depends on the shapes only, never on the number of threads.
    """
    if arrays[0].nbytes < SMALL:
        return [body(*arrays)]
    rows = len(arrays[0])
    row_bytes = sum(array.itemsize * math.prod(array.shape[1:]) for array in arrays)
    count = max(1, min(rows, rows * row_bytes // BLOCK_BYTES))
    if count < FEWEST_BLOCKS:
        return [body(*arrays)]
    edges = [rows * index // count for index in range(count + 1)]

    def block(index: int) -> Any:
        return body(*(array[edges[index] : edges[index + 1]] for array in arrays))

    return parallel_for(block, count)


def add_into(total: np.ndarray, term: np.ndarray) -> None:
    """total += term, for arrays with rows of equal size."""
    over_row_blocks(lambda total, term: np.add(total, term, out=total), total, term)


def mean_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean of a · b over each row.  (N, C), (N, C) -> (N, 1)."""
    return np.vecdot(a, b)[:, None] / a.dtype.type(a.shape[1])


def sum_rows(x: np.ndarray) -> np.ndarray:
    """Σ over rows.  x (N, C) -> (C,)."""
    # A product with a vector of ones reads the rows at memory speed; np.sum along axis 0 does not.
    return sum(over_row_blocks(lambda x: np.ones(len(x), x.dtype) @ x, x))
