"""Weights in fewer bits: half or a quarter of float32's memory, which is what decoding waits for.

    bfloat16    the upper half of a float32: 8 of its 24 binary digits, all of its range
    int8        w_oi ≈ s_o q_oi,  q whole numbers from -127 to 127,  s_o = max_i |w_oi| / 127

A matrix W (O, I) stands in rows, one for each output of y = x Wᵀ. Why a scale a row: it does not
depend on what is summed over, so it factors out of the product,

    y_no = Σ_i x_ni s_o q_oi = s_o Σ_i x_ni q_oi

and costs one multiplication for each y. A scale for each input could be given to x instead; one for
each of both, or for blocks of a row as in GGUF's Q8_0, does not come out of the sum.

The error. Rounding to bfloat16 changes w by at most 2⁻⁸ |w|; to int8 by at most s_o / 2, evenly
spread, so by s_o / √12 in the root mean square. The errors ε of a row are nearly independent. Then
that of y_no, Σ_i x_ni ε_oi, has the mean square |x_n|² s_o² / 12, and y_no itself |x_n|² σ_o², with
σ_o the standard deviation of the row: the relative error is s_o / (σ_o √12) = max|w| / (127 √12
σ_o), 0.9 % for a row whose largest weight is four standard deviations.

In oneDNN's products x is rounded as well: to bfloat16, or to whole numbers with a scale for each
row of x. Eight bits of these would be too coarse, for some features of a Transformer are a hundred
times larger than the others. So x has sixteen, whose two bytes a and b are two rows of one product,
and leave at most t / 512 of error:

    x_n ≈ t_n (a_n + b_n / 256)     256 a_n + b_n = round(256 x_n / t_n),   t_n = max_i |x_ni| / 127

How such a matrix is multiplied, stored_rows.py says.
"""

from __future__ import annotations

import numpy as np

from numgpt.runtime.blocks import over_row_blocks
from numgpt.runtime.onednn import OneDNN
from numgpt.runtime.scratch import empty
from numgpt.runtime.stored_rows import LARGEST, FewerBits

UNSIGNED = 128  # is added to x: onednn.py
SMALLEST = 1e-30  # of t: then 256 / t is finite, of a row of zeros too
ROUNDED_BY_LIBRARY = 1 << 16  # bytes from which on that is quicker


class BFloat16(FewerBits):
    """W (R, C) in bfloat16, as uint16."""

    kind, needs = "bfloat16", frozenset({"avx512_bf16"})

    @classmethod
    def rounded(cls, matrix: np.ndarray, library: OneDNN | None) -> BFloat16:
        return cls(to_bfloat16(matrix), library)

    def write_out(self, rows: np.ndarray, out: np.ndarray) -> None:
        from_bfloat16(rows, out)

    def is_finite(self) -> bool:
        largest = 0x7F80  # of all exponents' bits
        return not any(over_row_blocks(lambda bits: ((bits & largest) == largest).any(), self.data))

    def multiply(self, x: np.ndarray, out: np.ndarray) -> None:
        assert self.library is not None
        self.library.product(self.kind, to_bfloat16(x, self.library), self.addresses, out)


def to_bfloat16(x: np.ndarray, library: OneDNN | None = None) -> np.ndarray:
    """float32, in C order -> the nearest bfloat16, of two as near the even one, as uint16.  A
    library is quicker with many, and takes what is below 2⁻¹²⁶ for 0."""
    if library is not None and x.nbytes >= ROUNDED_BY_LIBRARY:
        library.round(x, out := empty(x.shape, np.uint16))
        return out

    def on_rows(bits: np.ndarray, out: np.ndarray) -> None:
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        np.right_shift(rounded, 16, out=out, casting="unsafe")

    out = np.empty(x.shape, np.uint16)
    over_row_blocks(on_rows, x.view(np.uint32), out)
    return out


def from_bfloat16(bits: np.ndarray, out: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 -> float32, in `out`."""
    numbers = out.view(np.uint32)
    np.copyto(numbers, bits)
    np.left_shift(numbers, 16, out=numbers)
    return out


class Int8(FewerBits):
    """W (R, C) = scales · q."""

    kind, needs = "int8", frozenset({"avx512_vnni", "avx_vnni"})
    parts = ("scales", "shift")
    widest = (1 << 31) // (255 * LARGEST)  # a sum of more could be beyond an int32

    def __init__(self, rows: np.ndarray, scales: np.ndarray, library: OneDNN | None = None):
        super().__init__(rows, library)
        self.scales: np.ndarray = scales
        self.shift = -UNSIGNED * scales * rows.sum(axis=1, dtype=np.float32)  # exact: whole, small

    @classmethod
    def rounded(cls, matrix: np.ndarray, library: OneDNN | None) -> Int8:
        rows, scales = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)

        def some(matrix: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
            scales[:] = np.abs(matrix).max(axis=1) / LARGEST
            scales[scales == 0] = 1
            rows[...] = np.rint(matrix / scales[:, None])

        over_row_blocks(some, matrix, rows, scales)
        return cls(rows, scales, library)

    def write_out(self, rows: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, rows)

    def multiply(self, x: np.ndarray, out: np.ndarray) -> None:
        assert self.library is not None
        count = len(x)
        t, parts = np.empty((count, 1), np.float32), np.empty((2 * count, x.shape[1]), np.uint8)

        def round_rows(x: np.ndarray, t: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
            t[:] = np.maximum(np.abs(x).max(axis=1, keepdims=True) / LARGEST, SMALLEST)
            t[np.isinf(t)] = np.nan  # then so is the result
            # From 2²³ on, a float32 ends with a whole number: its two lowest bytes are a and b.
            number = x * (256 / t)
            number += 2**23 + 256 * UNSIGNED + UNSIGNED
            bytes_of = number.view(np.uint8).reshape(*x.shape, 4)
            b[...], a[...] = bytes_of[..., 0], bytes_of[..., 1]

        def put_together(y_a: np.ndarray, y_b: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
            np.multiply(y_b, 1 / 256, out=out)
            out += y_a
            out *= t

        over_row_blocks(round_rows, x, t, parts[:count], parts[count:])
        y = empty((2 * count, self.shape[0]), np.float32)
        self.library.product(self.kind, parts, self.addresses, y)
        over_row_blocks(put_together, y[:count], y[count:], t, out)


KINDS: dict[str, type[FewerBits]] = {"bfloat16": BFloat16, "int8": Int8}
DTYPES = ("float32", *KINDS)  # what a model's matrices are kept as
