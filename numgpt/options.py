"""Options: what their values may be, as tables, and errors that carry their names.

A caller in Python knows an option as `lr=1`, a person at a terminal as `--lr 1`. So an error does
not spell its options: it carries names and values, and whoever tells it writes them.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from numgpt.messages import shown

# An option's name and value -> how it is written; without a value, its name alone.
WriteOption = Callable[..., str]


def as_argument(name: str, *value: Any) -> str:
    """An option as a call in Python has it."""
    return "=".join([name, *map(shown, value)])


AboutT = TypeVar("AboutT", bound="AboutOptions")


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
    def of(cls: type[AboutT], options: object, template: str, *texts: object) -> AboutT:
        """A message of options whose values are attributes of an object."""
        return cls(template, *texts, **{n: getattr(options, n) for n in _NAMED.findall(template)})

    def told(self, write: WriteOption) -> str:
        """The message, each option as `write` writes it."""
        named = {name: _Option(name, value, write) for name, value in self.options.items()}
        names = {name: _Option(name, None, write) for name in _ALONE.findall(self.template)}
        return self.template.format(*self.texts, **(names | named))

    def renamed(self: AboutT, names: Mapping[str, str]) -> AboutT:
        """The same of options that have other names here."""

        def ours(match: re.Match[str]) -> str:
            return "{" + names.get(match[1], match[1])

        template = re.sub(r"\{([a-z]\w*)", ours, self.template)
        options = {names.get(name, name): value for name, value in self.options.items()}
        return type(self)(template, *self.texts, **options)

    def after(self: AboutT, place: object) -> AboutT:
        """The same, with where it happened before it."""
        template = f"{{{len(self.texts)}}}: {self.template}"
        return type(self)(template, *self.texts, place, **self.options)


class OptionError(AboutOptions, ValueError):
    """An option, or several together, that are invalid."""


class OptionFileError(AboutOptions, FileNotFoundError):
    """An option that names a file where none is."""


class OptionWarning(AboutOptions, UserWarning):
    """An option without the intended effect."""


_NAMED, _ALONE = re.compile(r"\{([a-z]\w*)\}"), re.compile(r"\{([a-z]\w*):name\}")


class _Option:
    def __init__(self, name: str, value: Any, write: WriteOption):
        self.name, self.value, self.write = name, value, write

    def __format__(self, spec: str) -> str:
        return self.write(self.name) if spec == "name" else self.write(self.name, self.value)


# --- what the value of an option may be ---


class Rule(NamedTuple):
    """What a value may be: its type, the same in words, and as a test."""

    kind: type
    expected: str
    fits: Callable[[Any], bool]


LARGEST = 1 << 128  # of whole numbers


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, Python's or NumPy's."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def is_list(value: object) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def whole(least: int, most: float = LARGEST, numpys: bool = False) -> Rule:
    """A whole number, of Python; with `numpys` also of NumPy, which no JSON file can hold."""
    expected = f"a whole number from {least} " + (f"to {most:,}" if most < LARGEST else "up")

    def fits(value: Any) -> bool:
        return (is_whole(value) if numpys else type(value) is int) and least <= value <= most

    return Rule(int, expected, fits)


def number(
    least: float = -math.inf,
    below: float = math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    hint: str = "",
    numpys: bool = False,
) -> Rule:
    """A finite number in a range, of Python, with `numpys` also of NumPy; and what to do where it
    is none."""
    expected = "a number"
    if math.isfinite(above):
        expected += f" above {above:,.9g}"
    if math.isfinite(least):
        expected = f"{least:,.9g} or more"
    if math.isfinite(below):
        expected += f" and below {below:,.9g}"
    if math.isfinite(most):
        expected += f", up to {most:,.9g}"

    def fits(value: Any) -> bool:
        real = isinstance(value, numbers.Real if numpys else (int, float))
        try:
            finite = real and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number beyond the largest float
            finite = False
        return finite and above < value <= most and least <= value < below

    return Rule(float, expected + hint, fits)


def truth() -> Rule:
    return Rule(bool, "true or false", lambda value: isinstance(value, bool))


def text(expected: str = "text", fits: Callable[[str], object] = lambda text: True) -> Rule:
    return Rule(str, expected, lambda value: isinstance(value, str) and bool(fits(value)))


def texts(expected: str = "text, or a list of texts") -> Rule:
    """A text, or several."""

    def fits(value: Any) -> bool:
        several = isinstance(value, list) and len(value) > 0
        return isinstance(value, str) or (several and all(isinstance(one, str) for one in value))

    return Rule(list, expected, fits)


def one_of(names: Collection[str]) -> Rule:
    return text(" or ".join(names), lambda text: text in names)


def token_ids() -> Rule:
    """A token id, several, or none, as files have them."""

    def fits(value: Any) -> bool:
        ids = value if isinstance(value, list) else [] if value is None else [value]
        return all(type(id) is int and 0 <= id < LARGEST_ID for id in ids)

    return Rule(list, "a token id, several, or none", fits)


LARGEST_ID = 1 << 31


def optional(rule: Rule) -> Rule:
    """The same, or None."""
    return Rule(rule.kind, rule.expected, lambda value: value is None or rule.fits(value))


def require(options: object, rule: Rule, *names: str) -> None:
    """Raises OptionError for the first of these attributes that is not what the rule says."""
    for name in names:
        if not rule.fits(value := getattr(options, name)):
            raise OptionError(f"{{{name}}}: expected {rule.expected}", **{name: value})


# What is wrong with several options together, as a test, and what to say of it.
Combination = tuple[Callable[[Any], bool], str]


def refuse(options: object, combinations: Iterable[Combination]) -> None:
    """Raises OptionError for the first that is there."""
    for is_wrong, template in combinations:
        if is_wrong(options):
            raise OptionError.of(options, template)
