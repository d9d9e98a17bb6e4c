"""Text that knows of each of its characters who wrote it.

A chat template is a program that puts a conversation together: it joins, cuts, strips and replaces.
To know afterwards which "<|im_end|>" is the template's and which is somebody's, each string that
people wrote goes in as a Traced one, and what the program makes of it is Traced as well. What can't
be followed is of unknown origin, never the template's.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence
from contextvars import ContextVar
from typing import Any, SupportsIndex

# A character's origin, as a character itself: so that origins are cut and joined as texts are.
TEMPLATE, UNKNOWN, OTHERS = "\0", "\1", "\2"  # OTHERS: of tools, documents and other variables
_FIRST_MESSAGE = 3
MOST_MESSAGES = 0xD000
MOST_CHARACTERS = 1 << 24
# Added to an origin: within {% generation %}.
GENERATED = 0x10000

# What is read once, or by way of another object.
_LISTED: tuple[Any, ...] = (Iterator, MappingView)
_SAME = re.compile(r"(.)\1*", re.DOTALL)
# A text's number, in place of the text.
_LEFT, _RIGHT = "\u2e28", "\u2e29"
_HIDDEN = re.compile(f"{_LEFT}([0-9]+){_RIGHT}")


def of_message(number: int) -> str:
    """The origin of what stands in a message of a conversation."""
    return chr(_FIRST_MESSAGE + number)


def message_of(origin: str) -> int | None:
    """The number of the message that a character is of."""
    number = ord(whose(origin)) - _FIRST_MESSAGE
    return number if number >= 0 else None


def _in_case(change: Callable[[str], str]) -> Callable[[Traced], Traced]:
    """A method of str that changes letters, as one of Traced."""

    def changed(self: Traced) -> Traced:
        text = change(self.plain)
        if len(text) == len(self):
            return Traced(text, self.origin)
        by_character = joined(Traced(change(c.plain), c.origin) for c in self)
        return by_character if by_character == text else Traced(text)

    return changed


class Traced(str):
    """A text with an origin for each character."""

    __slots__ = ("origin",)
    origin: str

    def __new__(cls, text: str, origin: str = UNKNOWN) -> Traced:
        """The origin of all of it, or one for each character."""
        self = super().__new__(cls, text)
        self.origin = origin if len(origin) == len(self) else origin * len(self)
        return self

    def __str__(self) -> str:
        return self

    @property
    def plain(self) -> str:
        """The text alone."""
        return str.__str__(self)

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        return Traced(super().__getitem__(key), self.origin[key])

    def __iter__(self) -> Iterator[Traced]:
        return map(Traced, str.__iter__(self), self.origin)

    def __add__(self, other: str) -> Traced:
        return joined((self, other))

    def __radd__(self, other: str) -> Traced:
        return joined((other, self))

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(super().__mul__(times), self.origin * times)

    __rmul__ = __mul__

    # --- cutting ---

    def lstrip(self, chars: str | None = None, /) -> Traced:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Traced:
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> Traced:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Traced:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def _found(self, pieces: Iterable[str]) -> list[Traced]:
        """Pieces that follow one another in the text, as parts of it."""
        found, place = [], 0
        for piece in pieces:
            start = self.index(piece, place)
            place = start + len(piece)
            found.append(self[start:place])
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        pieces = super().split(sep, maxsplit)
        return self._found(pieces) if sep is None else self._between(pieces, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        pieces = super().rsplit(sep, maxsplit)
        return self._found(pieces) if sep is None else self._between(pieces, len(sep))

    def _between(self, pieces: Iterable[str], gap: int) -> list[Traced]:
        """Pieces with a separator of so many characters between any two."""
        found, place = [], 0
        for piece in pieces:
            found.append(self[place : place + len(piece)])
            place += len(piece) + gap
        return found

    def splitlines(self, keepends: bool = False) -> list[Traced]:  # type: ignore[override]
        lines = self._between(super().splitlines(keepends=True), 0)
        without = super().splitlines()
        return lines if keepends else [line[: len(w)] for line, w in zip(lines, without)]  # noqa: B905

    def partition(self, sep: str, /) -> tuple[Traced, ...]:  # type: ignore[override]
        return tuple(self._between(super().partition(sep), 0))

    def rpartition(self, sep: str, /) -> tuple[Traced, ...]:  # type: ignore[override]
        return tuple(self._between(super().rpartition(sep), 0))

    # --- joining and replacing ---

    def join(self, parts: Iterable[str], /) -> Traced:
        between: list[str] = []
        for part in parts:
            between += [self, part]
        return joined(between[1:])

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:  # type: ignore[override]
        if not old:
            return Traced(super().replace(old, new, count))
        return as_traced(new).join(self.split(old, count))

    # --- letters in another case ---

    upper = _in_case(str.upper)
    lower = _in_case(str.lower)
    casefold = _in_case(str.casefold)
    swapcase = _in_case(str.swapcase)
    title = _in_case(str.title)
    capitalize = _in_case(str.capitalize)


def as_traced(text: str) -> Traced:
    """A text; one that is not followed is the template's, as long as no filter may have made it."""
    if isinstance(text, Traced):
        return text
    return Traced(str(text), TEMPLATE if type(text) is str and not _filtering.get() else UNKNOWN)


_filtering = ContextVar("_filtering", default=False)  # whether a filter is at work, in this thread


def filtered(function: Callable[..., Any], values: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """function(*values, **named), within which a text that is not followed is of unknown origin;
    the template's own are handed over as such."""
    values, named = _template_texts(values), _template_texts(dict(named))
    before = _filtering.set(True)
    try:
        return function(*values, **named)
    finally:
        _filtering.reset(before)


def _template_texts(value: Any) -> Any:
    """A value in which the template's own texts are traced as well."""
    if type(value) is str:
        return Traced(value, TEMPLATE)
    if type(value) is dict:
        return {key: _template_texts(item) for key, item in value.items()}
    return type(value)(map(_template_texts, value)) if type(value) in (list, tuple) else value


def joined(parts: Iterable[str]) -> Traced:
    """Texts one after another.  Raises MemoryError for more than any conversation has."""
    traced = [as_traced(part) for part in parts]
    if sum(map(len, traced)) > MOST_CHARACTERS:
        raise MemoryError
    return Traced("".join(traced), "".join([part.origin for part in traced]))


def traced(value: Any, origin: str) -> Any:
    """A value as JSON has them, every string in it of this origin."""
    if isinstance(value, str):
        return Traced(value, origin)
    if isinstance(value, dict):
        return {traced(key, origin): traced(item, origin) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [traced(item, origin) for item in value]
    return value


def whose(origin: str) -> str:
    """An origin, wherever the character stands."""
    return chr(ord(origin) & (GENERATED - 1))


def runs(origin: str, kind: Callable[[str], Any]) -> Iterator[tuple[int, int, Any]]:
    """Neighbours of the same kind: start, end, kind."""
    for this, same in itertools.groupby(_SAME.finditer(origin), lambda match: kind(match[1])):
        matches = list(same)
        yield matches[0].start(), matches[-1].end(), this


def through(
    function: Callable[..., Any],
    values: Sequence[Any] = (),
    named: Mapping[str, Any] | None = None,
    known: tuple[type, ...] = (),
) -> Any:
    """function(*values, **named) of any function that makes one text of others: where it takes them
    as they are, they are found again in its result; else all of that is of unknown origin.

    Values are what JSON has, and objects of the types `known`, which hold nobody's texts; with any
    other the result is of unknown origin as well.
    """
    values = [
        list(value) if isinstance(value, _LISTED) and not isinstance(value, known) else value
        for value in values
    ]
    named = named or {}
    result = function(*values, **named)
    followed = isinstance(result, Traced) and UNKNOWN not in result.origin
    if followed or not isinstance(result, str):
        return result
    inside: list[Traced] = []
    unknown = result if isinstance(result, Traced) else Traced(str(result))
    try:
        hidden = _hide(values, inside, known)
        hidden_named = _hide(dict(named), inside, known)
        if not inside:
            return as_traced(result)
        again = function(*hidden, **hidden_named)
    except Exception:  # a text of other length or form, or what is no value as JSON has them
        return unknown
    found = _with(again, inside)
    return found if found == result and UNKNOWN not in found.origin else unknown


def to_json(value: Any, **options: Any) -> Traced:
    """json.dumps(value, …), followed."""
    inside: list[Traced] = []
    if options.pop("sort_keys", False):
        value = _in_order(value)
    written = json.dumps(_hide(value, inside), **options)
    ascii_only = options.get("ensure_ascii", True)
    for sign in (_LEFT, _RIGHT):
        written = written.replace(json.dumps(sign)[1:-1], sign)
    escaped = [
        joined(Traced(json.dumps(c.plain, ensure_ascii=ascii_only)[1:-1], c.origin) for c in text)
        for text in inside
    ]
    return _with(written, escaped)


def _in_order(value: Any) -> Any:
    """A value with its keys sorted."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    return [_in_order(item) for item in value] if isinstance(value, (list, tuple)) else value


def _hide(value: Any, inside: list[Traced], known: tuple[type, ...] = ()) -> Any:
    """A value with a number in place of each text that is followed.  Raises TypeError for one that
    may hold others."""
    if isinstance(value, Traced):
        inside.append(value)
        return f"{_LEFT}{len(inside) - 1}{_RIGHT}"
    if isinstance(value, dict):
        return {_hide(k, inside, known): _hide(v, inside, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_hide(item, inside, known) for item in value])
    if value is None or isinstance(value, (str, int, float, *known)):
        return value
    raise TypeError(f"what {type(value).__name__} holds is not followed")


def _with(written: str, inside: list[Traced]) -> Traced:
    """What is written, with the texts in place of their numbers."""
    parts = _HIDDEN.split(written)
    parts[1::2] = [inside[int(number)] for number in parts[1::2]]
    return joined(parts)
