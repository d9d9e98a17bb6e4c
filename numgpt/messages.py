"""What error messages show of a value: enough to recognise it, never more than a few words; and how
people are told what goes on beside the result.

Values come from files and from strangers. Written out whole, one of them can fill a screen, or,
nested and shared, take longer than anybody waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
import shlex
import sys
from typing import Any, TextIO

MOST = 80  # characters


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = 6
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out a number of thousands of digits.
        if value.bit_length() > 200:
            return f"a number of {value.bit_length()} bits"
        return super().repr_int(value, level)


_brief = _Brief()


def shown(value: Any) -> str:
    """repr(value), cut to MOST characters."""
    text = _brief.repr(value)
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def one_line(error: object) -> str:
    """An error's own words on one line, cut where they go on and on."""
    text = " ".join(str(error)[:2000].split())
    return text if len(text) <= 1000 else text[:999] + "…"


# json's words for what is met most often.
_PLAIN = {
    "Extra data": "a comma or more stands behind the object",
    "Expecting property name enclosed in double quotes": "no key in quotes, or a comma too many",
    "Illegal trailing comma before end of object": "a comma too many",
    "Invalid control character at": "a line break or tab inside a text",
}


def wrong_json(error: Exception, in_line: bool = False) -> str:
    """What json says of a text that is none; `in_line` also the line that it is in."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if not isinstance(error, json.JSONDecodeError):
        return str(error).partition(";")[0]  # a number of thousands of digits
    ends = error.pos >= len(error.doc.rstrip())
    if error.doc.strip() and (ends or error.msg.startswith("Unterminated string")):
        return "it ends before a quote, a bracket or a brace is closed"
    what = _PLAIN.get(error.msg, error.msg.removesuffix(" at"))
    return f"{what} at {f'line {error.lineno}, ' * in_line}column {error.colno}"


def quoted(path: str | os.PathLike) -> str:
    """A path as it is typed into a shell."""
    return shlex.quote(os.fspath(path))


def tell(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print for a person, on standard error where no stream is given.  Nobody may be there any
    more: that stops nothing."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=stream or sys.stderr, flush=True)


# What a terminal would take as a command to itself.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text that does nothing to a terminal; models and files come from strangers."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
