"""Products in bfloat16 for training, with everything that lasts in float32 ("mixed precision",
Micikevicius et al. 2017, arXiv:1710.03740; with bfloat16 Kalamkar et al. 2019, arXiv:1905.12322).

What a product reads is rounded to 8 binary digits, r(·), and what it gives is summed in float32:

    y = r(x) r(W)          dx = r(dy) r(W)ᵀ          dW = r(x)ᵀ r(dy)

Each of x, W and dy is read by two products, and W by those of every batch of a step: it is rounded
once, for all of them, and what a backward needs is kept as it was rounded, in half the memory.

Why that is enough. Rounding changes a number by at most 2⁻⁸ of it (fewer_bits.py), with either
sign, so that of a sum's n terms the errors mostly cancel: its own grows as √n. A gradient has the
noise of its batch anyway, which is larger.

Why the weights are not kept so. A step changes a weight by about lr, often less than 2⁻⁹ of it:
added to a number of 8 digits that is nothing, and no step would ever change it. In float32 the
steps add up, and the rounded copy follows. Gradients need no scaling, as they do in float16, for
bfloat16 has all of float32's range.

oneDNN multiplies rounded matrices as they lie. Where it is missing, or the CPU's instructions are,
NumPy multiplies the rounded numbers in float32: the same result, in no less time.
"""

from __future__ import annotations

import functools

import numpy as np

from numgpt.runtime.fewer_bits import BFloat16, from_bfloat16, to_bfloat16
from numgpt.runtime.kernels import cpu_flags
from numgpt.runtime.onednn import OneDNN, find_onednn
from numgpt.runtime.products import matmul
from numgpt.runtime.scratch import empty
from numgpt.runtime.weights import SideBySide, Weight


class Rounded(Weight):
    """A matrix (M, N) rounded to bfloat16, for products with others: right of an array, which is
    rounded as well, or of another Rounded."""

    dtype = np.dtype(np.float32)  # of the products

    def __init__(self, numbers: np.ndarray):
        """numbers (M, N): bfloat16 as uint16, or float32 that have been rounded."""
        self.numbers = numbers
        self.shape = numbers.shape

    @classmethod
    def of(cls, matrix: np.ndarray) -> Rounded:
        """matrix (M, N) in float32; one that lies in columns stays so."""
        if matrix.strides[0] < matrix.strides[1]:
            return cls.of(matrix.T).T
        library = multiplier()
        bits = to_bfloat16(np.ascontiguousarray(matrix), library)
        if library is None:
            return cls(from_bfloat16(bits, np.empty_like(bits, np.float32)))
        return cls(bits)

    @property
    def T(self) -> Rounded:  # noqa: N802 (as arrays have it)
        return Rounded(self.numbers.T)

    def __getitem__(self, rows: slice) -> Rounded:  # type: ignore[override]
        return Rounded(self.numbers[rows])

    def product(self, x: np.ndarray | Rounded, out: np.ndarray | None = None) -> np.ndarray:
        x = Rounded.of(x) if isinstance(x, np.ndarray) else x
        if out is None:
            out = empty((x.shape[0], self.shape[1]), np.float32)
        library = multiplier()
        if library is None:
            return matmul(x.numbers, self.numbers, out)
        if not library.gemm(x.numbers, self.numbers, out):
            raise ValueError(f"a product of {x.shape} and {self.shape} into {out.shape}")
        return out

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes

    def __array__(
        self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        whole = self.numbers
        if whole.dtype != np.float32:
            whole = from_bfloat16(whole, np.empty_like(whole, np.float32))
        return whole.astype(dtype or np.float32, copy=False)


def rounded_weight(weight: np.ndarray | Weight) -> np.ndarray | Weight:
    """A matrix for products in bfloat16; one that is kept in fewer bits stays as it is."""
    if isinstance(weight, np.ndarray):
        return Rounded.of(weight)
    if isinstance(weight, SideBySide) and all(isinstance(m, np.ndarray) for m in weight.matrices):
        rows = [Rounded.of(matrix).T.numbers for matrix in weight.matrices]  # (O, I) each
        return Rounded(np.concatenate(rows).T)
    return weight


def read_by(weight: np.ndarray | Weight, x: np.ndarray) -> np.ndarray:
    """x (N, C) as the products with this weight read it: itself, or rounded once for all of them,
    to be passed to products and nothing else."""
    if isinstance(weight, Rounded) and isinstance(x, np.ndarray):
        return Rounded.of(x)  # type: ignore[return-value]
    return x


def multiplies_rounded() -> bool:
    """Whether products of what is rounded are faster than those in float32."""
    return multiplier() is not None


@functools.cache
def multiplier() -> OneDNN | None:
    """oneDNN, where it is, the CPU has the instructions, and a trial gives what it should."""
    library = find_onednn()[0]
    if library is None or not BFloat16.needs & cpu_flags():
        return None

    def arranged(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(a, b), (a.T, b), (a, b.T), (a.T, b.T)]

    a, b = np.random.default_rng(0).integers(-100, 100, (2, 70, 70)).astype(np.float32)
    out, of_bits = np.empty_like(a), arranged(to_bfloat16(a), to_bfloat16(b))  # no number changes
    try:
        for (x, w), (of_x, of_w) in zip(arranged(a, b), of_bits, strict=True):
            if not library.gemm(of_x, of_w, out) or not np.array_equal(out, x @ w):
                return None
    except (AttributeError, RuntimeError):
        return None
    return library
