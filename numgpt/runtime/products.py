"""Matrix products, written straight into their place, in the BLAS's own threads.

A transposed operand (`x.T`) costs nothing: BLAS reads it as it lies in memory. The BLAS cuts a
product by the number of its threads, so the last bits of a result may change with that number.

A product of few rows (the tokens of some sequences that grow side by side) does little with each
weight, so what counts is how fast the weights come from memory. A single row is a matrix-vector
product, which streams them. For more, BLAS first copies the weights into the order that its kernels
like, and that takes longer than the product. Two ways round the copy are taken here: a vector
product a row, or products so small that OpenBLAS takes the weights where they lie. On two cores of
Zen 4, for all matrices of GPT-2 124M, np.matmul alone takes 2.2 (2 rows) to 1.1 (16 rows) times as
long with NumPy 2.4 and its OpenBLAS 0.3.31, 1.6 to 1.04 times with NumPy 2.5 and 0.3.34.

Where oneDNN is installed, it makes the large products of float32 (onednn.py says why it has to be
all of them): of GPT-2 124M on two cores of Zen 5 in 0.5 to 0.75 of the time for 2 to 64 rows, the
same for a thousand. Its gemm copies weights, too; for some numbers of rows (FEW_ROWS there) it has
a product that does not, which takes 0.7 to 0.9 of the gemm's time on two cores of Zen 4, and for 16
rows by weights that lie in columns, as a Llama's, 0.45. A single row alone is OpenBLAS's, which
streams weights as fast and is called with less ado.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from numgpt.runtime.kernels import OPENBLAS
from numgpt.runtime.onednn import find_onednn
from numgpt.runtime.scratch import empty
from numgpt.runtime.threads import blas_is_single_threaded, in_a_piece, num_threads, parallel_for

if TYPE_CHECKING:
    from numgpt.runtime.weights import Transposed, Weight

PANEL_BYTES = 1 << 22  # of a partial product that is added to a result: it stays in the L3 cache

# What counts as few rows, and from which size on weights come from memory and not from a cache.
FEW_ROWS, LARGE_WEIGHTS_BYTES = 16, 1 << 20
VECTOR_ROWS = 3  # up to here, a vector product a row is the fastest way through plain weights
# OpenBLAS's AVX-512 kernels copy nothing in a product of up to 10⁶ multiplications, with transposed
# weights only where its result has at most 1200 numbers: FEW_ROWS x WIDEST_PANEL stays below.
SMALL_KERNELS = OPENBLAS is not None and OPENBLAS.core in {
    "SkylakeX",
    "Cooperlake",
    "SapphireRapids",
}
LEAST_FOR_ONEDNN = 1 << 18  # multiplications
SMALL_PRODUCT, SMALL_RESULT, WIDEST_PANEL, NARROWEST_PANEL = 10**6, 1200, 64, 16


def matmul(
    a: np.ndarray, b: np.ndarray | Weight | Transposed, out: np.ndarray | None = None
) -> np.ndarray:
    """a (M, K) @ b (K, N) -> (M, N), of one dtype, into `out` where it is given, which overlaps
    neither."""
    if not isinstance(b, np.ndarray):
        return b.product(a, out)
    if not isinstance(a, np.ndarray):  # a b = (bᵀ aᵀ)ᵀ
        return a.T.product(b.T, None if out is None else out.T).T
    if out is None:
        out = empty((a.shape[0], b.shape[1]), a.dtype)
    if a.dtype == np.float32 and len(a) * b.size >= LEAST_FOR_ONEDNN and _by_onednn(a, b, out):
        return out
    if 1 < len(a) <= FEW_ROWS and b.nbytes >= LARGE_WEIGHTS_BYTES:
        return _few_rows(a, b, out)
    return np.matmul(a, b, out=out)


def _by_onednn(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> bool:
    """Let oneDNN multiply, where it is: on all threads, or in a piece of work on its own."""
    if (library := find_onednn()[0]) is None:
        return False
    if len(a) > 1 or OPENBLAS is None:
        return library.gemm(a, b, out)
    if in_a_piece() or blas_is_single_threaded():
        return False
    OPENBLAS.set_num_threads(num_threads())
    try:
        np.matmul(a, b, out=out)
    finally:
        OPENBLAS.set_num_threads(1)
    return True


def add_matmul(total: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """total += a @ b.  a (M, K), b (K, N), total (M, N)."""
    if total.strides[0] < total.strides[1]:  # it lies in memory as the transpose of a plain matrix
        total, a, b = total.T, b.T, a.T
    rows = max(1, PANEL_BYTES // (total.shape[1] * total.itemsize))
    for start in range(0, len(total), rows):
        panel = slice(start, start + rows)
        total[panel] += matmul(a[panel], b)


def _few_rows(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """a (M, K) @ b (K, N) for few rows M."""
    plain = b.strides[0] >= b.strides[1]  # the rows of b lie in one piece each, not its columns
    if len(a) <= VECTOR_ROWS and (plain or not SMALL_KERNELS):
        for row, out_row in zip(a, out, strict=True):
            np.matmul(row, b, out=out_row)
        return out
    width = min(WIDEST_PANEL, SMALL_PRODUCT // a.size)
    if width < NARROWEST_PANEL or not SMALL_KERNELS:
        return np.matmul(a, b, out=out)
    return _in_panels(a, b, out, width)


def _in_panels(a: np.ndarray, b: np.ndarray, out: np.ndarray, width: int) -> np.ndarray:
    """a (M, K) @ b (K, N), `width` columns of b at a time, on all threads."""
    count = b.shape[1] // width
    whole, threads = count * width, num_threads()
    panels = b[:, :whole].reshape(len(b), count, width).swapaxes(0, 1)  # (count, K, width)
    results = out[:, :whole].reshape(len(a), count, width).swapaxes(0, 1)  # (count, M, width)

    def some(index: int) -> None:
        part = slice(count * index // threads, count * (index + 1) // threads)
        np.matmul(a, panels[part], out=results[part])

    parallel_for(some, threads)
    if whole < b.shape[1]:
        np.matmul(a, b[:, whole:], out=out[:, whole:])
    return out
