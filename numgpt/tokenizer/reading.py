"""Reading text files of any size, in parts that are tokenised as the whole would be."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator

import regex

from numgpt.reading import naming

PART_CHARACTERS = 1 << 24
MARK = "\ufeff"  # a byte order mark, which some editors write first
# What is changed of a text as it is read.
LINE_ENDS = "line ends other than a newline, which are read as newlines"
MARKED = "a byte order mark, which is left out"
# Where no piece of any pattern goes on (pattern.py): after anything but white space, before a space
# or a tab; before a newline too, if it is a letter or a digit (llama3's and qwen2's signs take the
# newlines after them, and NFC makes a sign of some letters' end); and after a newline that stands
# alone (of several, gpt2 leaves the last one to stand by itself).
_SAFE_CUT = regex.compile(
    r"(?r)(?<=\S)(?=[^\S\r\n])"
    r"|(?<=[\p{L}\p{N}])(?<!\p{NFC_Quick_Check=No})(?=[\r\n])"
    r"|(?<=\S\n)(?=\S)"
)


def read_text(
    path: str | os.PathLike,
    part_characters: int = PART_CHARACTERS,
    changes: Counter[str] | None = None,
) -> Iterator[str]:
    """The file's text, in parts that end where no piece does continue.

    Line ends of every kind are read as newlines, and a byte order mark is left out: that is counted
    in `changes`, or else a warning says so. Raises ValueError where the file is not UTF-8.
    """
    rest, begins, found = "", True, Counter[str]()
    with open(path, encoding="utf-8") as file:
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
            if begins and part.startswith(MARK):
                found[MARKED], part = 1, part.removeprefix(MARK)
            rest, begins = rest + part, False
            if cut := _SAFE_CUT.search(rest):
                yield rest[: cut.start()]
                rest = rest[cut.start() :]
        if file.newlines not in (None, "\n"):
            found[LINE_ENDS] = 1
    if rest:
        yield rest
    if changes is not None:
        changes.update(found)
    elif found:
        warnings.warn(f"{os.fspath(path)} has {' and '.join(found)}", stacklevel=2)
