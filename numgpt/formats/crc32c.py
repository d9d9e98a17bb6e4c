"""CRC-32C, the checksum of TensorFlow's checkpoints, at the speed of NumPy's exclusive or.

A message is a polynomial over GF(2), first bit highest; its CRC is what remains of message · x³²
after division by Castagnoli's P(x), with the first and the last 32 bits complemented. Addition is
exclusive or, so remainders add, and zeros in front change nothing. Instead of the first complement,
four bytes whose remainder is 32 ones come first.

Folding. P divides the sparse polynomial

    x²⁰⁹ + x¹⁴⁴ + x⁵⁴ + x³⁹ + x¹⁴ + 1        hence x²⁰⁹ ≡ x¹⁴⁴ + x⁵⁴ + x³⁹ + x¹⁴ + 1  (mod P)

Squaring over GF(2) doubles every exponent and nothing else, so the same holds for y = x^(8·2ᵏ), one
block of 2ᵏ bytes. In words: a block may be erased when it is added to the blocks 65, 155, 170, 195
and 209 places later. Up to 65 blocks are erased at a time, as none of them reaches another, by five
exclusive ors of long runs of bytes, until 209 blocks are left; then the blocks are halved. (The
idea is Chorba's, Russell 2024, arXiv:2412.16398.) The last 209 bytes take the textbook's table.
"""

from __future__ import annotations

import numpy as np

POLYNOMIAL = 0x82F63B78  # P without x³², reflected: bit 31 is x⁰, bit 0 is x³¹
BEFORE = bytes.fromhex("54641f64")  # has the remainder 0xFFFFFFFF
PLACES = (65, 155, 170, 195, 209)  # 209 minus the other exponents
LARGEST_BLOCK = 2048  # bytes, a power of two: 209 of them stay in a core's cache
PIECE = 1 << 20  # bytes of the message that are copied and folded at a time


def crc32c(data: bytes | bytearray | memoryview | np.ndarray) -> int:
    """The CRC-32C of a buffer or an array of bytes."""
    data = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    rest = np.frombuffer(BEFORE, np.uint8)
    for start in range(0, len(data), PIECE):
        rest = _fold(np.concatenate([rest, data[start : start + PIECE]]), LARGEST_BLOCK)
    for k in reversed(range(LARGEST_BLOCK.bit_length() - 1)):
        rest = _fold(rest, 2**k)
    remainder = 0
    for byte in rest.tobytes():
        remainder = remainder >> 8 ^ TABLE[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """The form in which LevelDB and TensorFlow store a CRC, so that CRCs of data that holds CRCs
    stay good checks."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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


def _table_entry(byte: int) -> int:
    """byte · x³² mod P: eight times by x."""
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = [_table_entry(byte) for byte in range(256)]
