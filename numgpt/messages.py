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
from collections.abc import Callable, Mapping
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


# An option's name and value -> how it is written; without a value, its name alone.
WriteOption = Callable[..., str]


def as_argument(name: str, *value: Any) -> str:
    """An option as a call in Python has it."""
    return "=".join([name, *map(shown, value)])


class AboutOptions(Exception):  # noqa: N818 (a warning is one, too)
    """A message that names options, so that whoever tells it can write them as its readers do.

    In the template `{lr}` is an option with its value, `{lr:name}` its name alone, `{0}` a text.

    >>> error = OptionError("{min_lr} is above {lr}: lower it{0}", ", or wait", min_lr=2, lr=1)
    >>> str(error)
    'min_lr=2 is above lr=1: lower it, or wait'
    >>> error.told(lambda name, *value: " ".join(["--" + name.replace("_", "-"), *map(str, value)]))
    '--min-lr 2 is above --lr 1: lower it, or wait'
    """

    def __init__(self, template: str, *texts: object, **options: Any):
        self.template, self.texts, self.options = template, texts, options
        super().__init__(self.told(as_argument))

    @classmethod
    def of(cls, options: object, template: str, *texts: object) -> AboutOptions:
        """A message of options whose values are attributes of an object."""
        return cls(template, *texts, **{n: getattr(options, n) for n in _NAMED.findall(template)})

    def __reduce__(self) -> tuple:
        return _again, (type(self), self.template, self.texts, self.options)

    def told(self, write: WriteOption) -> str:
        """The message, each option as `write` writes it."""
        named = {name: _Option(name, value, write) for name, value in self.options.items()}
        names = {name: _Option(name, None, write) for name in _ALONE.findall(self.template)}
        return self.template.format(*self.texts, **(names | named))

    def renamed(self, names: Mapping[str, str]) -> AboutOptions:
        """The same of options that have other names here."""

        def ours(match: re.Match[str]) -> str:
            return "{" + names.get(match[1], match[1])

        template = re.sub(r"\{([a-z]\w*)", ours, self.template)
        options = {names.get(name, name): value for name, value in self.options.items()}
        return type(self)(template, *self.texts, **options)

    def after(self, place: object) -> AboutOptions:
        """The same, with where it happened before it."""
        count = len(self.texts)
        template = f"{{{count}}}: {self.template}"
        return type(self)(template, *self.texts, place, **self.options)


class OptionError(AboutOptions, ValueError):
    """An option, or several together, that can't be."""


class OptionFileError(AboutOptions, FileNotFoundError):
    """An option that names a file where none is."""


class OptionWarning(AboutOptions, UserWarning):
    """An option that has not the effect that was meant."""


_NAMED, _ALONE = re.compile(r"\{([a-z]\w*)\}"), re.compile(r"\{([a-z]\w*):name\}")


class _Option:
    def __init__(self, name: str, value: Any, write: WriteOption):
        self.name, self.value, self.write = name, value, write

    def __format__(self, spec: str) -> str:
        return self.write(self.name) if spec == "name" else self.write(self.name, self.value)


def _again(cls: type[AboutOptions], template: str, texts: tuple, options: dict) -> AboutOptions:
    return cls(template, *texts, **options)


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
    if not isinstance(error, json.JSONDecodeError):
        return str(error).partition(";")[0]  # a number of thousands of digits, bytes that are none
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
