"""Reading text files of any size, in parts that are tokenised as the whole would be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import regex

PART_CHARACTERS = 1 << 24
# No piece of GPT-2's pattern reaches from a sign to the white space after it.
_SAFE_CUT = regex.compile(r"(?r)(?<=\S)(?=\s)")


def read_text(path: str | os.PathLike, part_characters: int = PART_CHARACTERS) -> Iterator[str]:
    """The file's text, in parts that end where no piece does continue.

    Newlines stay as they are in the file. Raises ValueError where the file is not UTF-8.
    """
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:
        while True:
            try:
                part = file.read(part_characters)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{os.fspath(path)} is not UTF-8 text (byte 0x{error.object[error.start]:02X},"
                    " which no character has there): convert it first, for instance with iconv"
                ) from None
            if not part:
                break
            rest += part
            if cut := _SAFE_CUT.search(rest):
                yield rest[: cut.start()]
                rest = rest[cut.start() :]
    if rest:
        yield rest
