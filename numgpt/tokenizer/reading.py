"""Reading text files of any size, in parts that are tokenised as the whole would be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import regex

from numgpt.files import naming

PART_CHARACTERS = 1 << 24
# Where no piece of any pattern goes on (pattern.py): after anything but white space, before a space
# or a tab; before a newline too, if it is a letter or a digit (llama3's and qwen2's signs take the
# newlines after them, and NFC makes a sign of some letters' end); and after a newline that stands
# alone (of several, gpt2 leaves the last one to stand by itself).
_SAFE_CUT = regex.compile(
    r"(?r)(?<=\S)(?=[^\S\r\n])"
    r"|(?<=[\p{L}\p{N}])(?<!\p{NFC_Quick_Check=No})(?=[\r\n])"
    r"|(?<=\S\n)(?=\S)"
)


def read_text(path: str | os.PathLike, part_characters: int = PART_CHARACTERS) -> Iterator[str]:
    """The file's text, in parts that end where no piece does continue.

    Newlines stay as they are in the file. Raises ValueError where the file is not UTF-8.
    """
    rest = ""
    with open(path, encoding="utf-8", newline="") as file:
        while True:
            try:
                with naming(path):
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
