"""GGUF's quantised types: weights in blocks that share a scale (ggml, Gerganov 2023).

A block of 32 weights holds a float16 scale d, for some types a float16 minimum m, and the weights
as small whole numbers q:

    Q4_0, Q5_0, Q8_0     w = d · (q - 8), d · (q - 16), d · q      (q signed in Q8_0)
    Q4_1, Q5_1           w = d · q + m

A "K" block has 256 weights: 8 parts of 32, or in Q6_K 16 parts of 16, whose own scales s (and
minima) are small whole numbers too:

    Q4_K, Q5_K           w = d · s · q - dmin · t
    Q6_K                 w = d · s · (q - 32)

Four-bit numbers lie two to a byte, the first half of a part in the low bits; fifth and sixth bits
lie apart. Each function takes n blocks of bytes and gives their weights,
(n, bytes) -> (n, weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from numgpt.formats.tensors import StoredTensor
from numgpt.runtime import parallel_for

WEIGHTS_AT_ONCE = 1 << 17  # what becomes of them stays in the cache


class QuantisedTensor(StoredTensor):
    """An array that is stored in blocks of quantised weights."""

    @property
    def nbytes(self) -> int:
        block_size, block_bytes, _ = BLOCKS[self.dtype]
        return math.prod(self.shape) // block_size * block_bytes

    @property
    def raw(self) -> np.ndarray:
        """The blocks, memory-mapped, (n, bytes)."""
        raw = np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=self.nbytes)
        return raw.reshape(-1, BLOCKS[self.dtype][1])

    def read_into(self, target: np.ndarray) -> None:
        block_size, _, dequantise = BLOCKS[self.dtype]
        in_place = target.flags.c_contiguous and target.dtype == np.float32
        weights = target if in_place else np.empty(target.shape, np.float32)

        blocks, rows = self.raw, weights.reshape(-1, block_size)
        step = WEIGHTS_AT_ONCE // block_size

        def part(index: int) -> None:
            chunk = slice(step * index, step * (index + 1))
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale is found later
                rows[chunk] = dequantise(blocks[chunk])

        parallel_for(part, -(-len(rows) // step))
        if not in_place:
            target[...] = weights


def dequantise_q4_0(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks[:, :2]) * (_nibbles(blocks[:, 2:]) - np.float32(8))


def dequantise_q4_1(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks[:, :2]) * _nibbles(blocks[:, 4:]) + _float16(blocks[:, 2:4])


def dequantise_q5_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6])
    return _float16(blocks[:, :2]) * (q - np.float32(16))


def dequantise_q5_1(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])
    return _float16(blocks[:, :2]) * q + _float16(blocks[:, 2:4])


def dequantise_q8_0(blocks: np.ndarray) -> np.ndarray:
    return _float16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)


def dequantise_q4_k(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 16:].reshape(-1, 32))  # (4 n, 64): two parts a row
    return _k_block(blocks, q)


def dequantise_q5_k(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 8, 32)
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]  # (n, 8, 32)
    q += (fifth & 1) << 4
    return _k_block(blocks, q)


def dequantise_q6_k(blocks: np.ndarray) -> np.ndarray:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)  # (n, halves of 128, 1, 64)
    low = (low >> np.array([[0], [4]], np.uint8)) & 15  # (n, 2, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = (high >> np.array([[0], [2], [4], [6]], np.uint8)) & 3  # (n, 2, 4, 32)
    q = low.reshape(-1, 16, 16) | (high.reshape(-1, 16, 16) << 4)
    scales = _float16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)  # (n, 16)
    return (scales[:, :, None] * (q - np.float32(32))).reshape(len(blocks), 256)


def _k_block(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d · s · q - dmin · t, for 8 parts of 32."""
    # s and t have six bits: of the first four parts together in a byte each, of the others the low
    # four bits in one byte and the high two in the spare bits of the first.
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    s_low, t_low, both = packed[:, 0], packed[:, 1], packed[:, 2]
    s = np.concatenate([s_low & 63, (both & 15) | (s_low >> 6 << 4)], axis=1)  # (n, 8)
    t = np.concatenate([t_low & 63, (both >> 4) | (t_low >> 6 << 4)], axis=1)
    d, dmin = _float16(blocks[:, :2]), _float16(blocks[:, 2:4])
    weights = (d * s)[:, :, None] * q.reshape(-1, 8, 32) - (dmin * t)[:, :, None]
    return weights.reshape(len(blocks), 256)


def _float16(raw: np.ndarray) -> np.ndarray:
    """(n, 2) bytes -> (n, 1) float32."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """(n, bytes) -> (n, 2 · bytes) float32: the low halves of all bytes, then the high ones."""
    n, count = raw.shape
    q = np.empty((n, 2 * count), np.float32)
    np.bitwise_and(raw, 15, out=q[:, :count], casting="unsafe")
    np.right_shift(raw, 4, out=q[:, count:], casting="unsafe")
    return q


def _fifth_bits(raw: np.ndarray) -> np.ndarray:
    """(n, 4) bytes -> (n, 32), 16 where a weight's bit is set."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


# Type -> weights in a block, bytes in a block, how they become weights.
BLOCKS: dict[str, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_0": (32, 18, dequantise_q4_0),
    "Q4_1": (32, 20, dequantise_q4_1),
    "Q5_0": (32, 22, dequantise_q5_0),
    "Q5_1": (32, 24, dequantise_q5_1),
    "Q8_0": (32, 34, dequantise_q8_0),
    "Q4_K": (256, 144, dequantise_q4_k),
    "Q5_K": (256, 176, dequantise_q5_k),
    "Q6_K": (256, 210, dequantise_q6_k),
}
