"""GPT-2's printable alphabet for bytes, which its vocabulary files are written in.

A vocabulary of raw bytes can't be written as JSON text, so each byte gets a printable character:
the printable ones of Latin-1 stand for themselves, the other 68 take U+0100 and what follows (a
space is "Ġ", a newline "Ċ"). The order of the bytes by these characters is also the order of
GPT-2's first 256 ids.
"""

from __future__ import annotations

from numgpt.messages import shown

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # ! to ~, ¡ to ¬, ® to ÿ
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTES = _PRINTABLE + _OTHERS  # in the order of their characters
_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE}
_TO_CHARACTER |= {byte: chr(0x100 + number) for number, byte in enumerate(_OTHERS)}
_TO_BYTE = {character: byte for byte, character in _TO_CHARACTER.items()}


def to_printable(token: bytes) -> str:
    """b" the" -> "Ġthe"."""
    return "".join([_TO_CHARACTER[byte] for byte in token])


def from_printable(text: str) -> bytes:
    """ "Ġthe" -> b" the".  Raises ValueError for a character that stands for no byte."""
    try:
        return bytes([_TO_BYTE[character] for character in text])
    except KeyError as error:
        raise ValueError(
            f"{shown(error.args[0])} in the token {shown(text)} stands for no byte"
        ) from None
