"""CRC-32C, the checksum of TensorFlow's checkpoints, at the speed of NumPy's exclusive or.

A message is a polynomial over GF(2), first bit highest; its CRC is what remains of message · x³²
after division by Castagnoli's P(x), with the first and the last 32 bits complemented. Addition is
exclusive or, so remainders add, and zeros in front change nothing.

Folding. P divides the sparse polynomial

    x²⁰⁹ + x¹⁴⁴ + x⁵⁴ + x³⁹ + x¹⁴ + 1        hence x²⁰⁹ ≡ x¹⁴⁴ + x⁵⁴ + x³⁹ + x¹⁴ + 1  (mod P)

Squaring over GF(2) doubles every exponent and nothing else, so the same holds for y = x^(8·2ᵏ), one
block of 2ᵏ bytes. In words: a block may be erased when it is added to the blocks 65, 155, 170, 195
and 209 places later. Up to 65 blocks are erased at a time, as none of them reaches another, by five
exclusive ors of long runs of bytes, until 209 blocks are left; then the blocks are halved. (The
idea is Chorba's, Russell 2024, arXiv:2412.16398.) The last 209 bytes take the textbook's table.

Joining. remainder(a followed by b) = remainder(a) · x^(8 · bytes of b) + remainder(b), so that
threads work on pieces of their own.
"""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np

from numgpt.runtime import num_threads, parallel_for

POLYNOMIAL = 0x82F63B78  # P without x³², reflected: bit 31 is x⁰, bit 0 is x³¹
PLACES = (65, 155, 170, 195, 209)  # 209 minus the other exponents
LARGEST_BLOCK = 2048  # bytes, a power of two: 209 of them stay in a core's cache
PIECE = 1 << 20  # bytes of the message that are copied and folded at a time
LEAST_SHARE = 1 << 20  # bytes that a thread of its own is worth


def crc32c(data: bytes | bytearray | memoryview | np.ndarray) -> int:
    """The CRC-32C of a buffer or an array of bytes."""
    data = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    threads = max(1, min(num_threads(), len(data) // LEAST_SHARE))
    cuts = [len(data) * i // threads for i in range(threads + 1)]
    parts = parallel_for(lambda i: _remainder(data[cuts[i] : cuts[i + 1]]), threads)
    total = 0xFFFFFFFF  # complements the first 32 bits
    for (begin, end), part in zip(pairwise(cuts), parts, strict=True):
        total = _shift(total, end - begin) ^ part
    return total ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """The form in which LevelDB and TensorFlow store a CRC, so that CRCs of data that holds CRCs
    stay good checks."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _remainder(data: np.ndarray) -> int:
    """data · x³² mod P."""
    rest = data[:0]
    for start in range(0, len(data), PIECE):
        rest = _fold(np.concatenate([rest, data[start : start + PIECE]]), LARGEST_BLOCK)
    block = LARGEST_BLOCK
    while block > 1:
        block //= 2
        rest = _fold(rest, block)
    remainder = 0
    for byte in rest.tobytes():
        remainder = remainder >> 8 ^ TABLE[(remainder ^ byte) & 0xFF]
    return remainder


def _fold(message: np.ndarray, block: int) -> np.ndarray:
    """The last 209 blocks of a message, after all before them has been added to what follows.

    Overwrites the message.
    """
    end = len(message) - PLACES[-1] * block
    for start in range(0, end, PLACES[0] * block):
        erased = message[start : min(start + PLACES[0] * block, end)]
        for place in PLACES:
            later = message[start + place * block :][: len(erased)]
            np.bitwise_xor(later, erased, out=later)
    return message[max(end, 0) :]


def _shift(remainder: int, count: int) -> int:
    """remainder · x^(8 · count) mod P, as if `count` bytes of zeros followed."""
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            remainder = _multiply(remainder, _power(bit))
    return remainder


@functools.cache
def _power(bit: int) -> int:
    """x^(8 · 2^bit) mod P, by squaring."""
    return 1 << (31 - 8) if bit == 0 else _multiply(_power(bit - 1), _power(bit - 1))


def _multiply(a: int, b: int) -> int:
    """a · b mod P."""
    product = 0
    for bit in range(31, -1, -1):  # x⁰ first, and b grows by one x a step
        if a >> bit & 1:
            product ^= b
        b = _times_x(b)
    return product


def _times_x(a: int) -> int:
    return a >> 1 ^ (POLYNOMIAL if a & 1 else 0)


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = _times_x(byte)
    return byte


TABLE = [_table_entry(byte) for byte in range(256)]
