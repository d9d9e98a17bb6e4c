"""Exercises that check themselves.

A check calls the learner's function and the solution with the same arguments. Where what they
return differs, so do the typical mistakes, each in its own way: a mistake is the solution with one
edit, and whoever's result is the mistake's has made it, and gets its hint. What fits no mistake is
described: a shape, a sign, a factor, a constant a row, the first number that is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import linecache
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numgpt.lessons import script
from numgpt.messages import one_line

Function = Callable[..., Any]


class Mistake(NamedTuple):
    """A typical one: the solution with one edit, and what is said of it."""

    code: str  # of the solution
    instead: str
    hint: str


@dataclass(frozen=True)
class Exercise:
    """What a function is asked with, and what is often wrong."""

    number: str  # lesson.place
    name: str  # of the function
    cases: Callable[[np.random.Generator], Sequence[tuple[Any, ...]]]  # arguments
    mistakes: tuple[Mistake, ...]
    returns: tuple[str, ...] = ("it",)  # what its values are called

    @property
    def lesson(self) -> int:
        return int(self.number.partition(".")[0])

    @property
    def cell(self) -> script.Cell:
        (cell,) = (c for c in script.cells_of(self.lesson) if c.exercise == self.number)
        return cell

    @functools.cached_property
    def solution(self) -> Function:
        """The lesson's own."""
        return self.compiled(self.cell.solved)

    @functools.cached_property
    def given(self) -> Function:
        """What stands there at first."""
        return self.compiled(self.cell.stub)

    @functools.cached_property
    def wrong(self) -> tuple[Function, ...]:
        """A function for each mistake."""
        code = self.cell.solved
        return tuple(self.compiled(code.replace(m.code, m.instead)) for m in self.mistakes)

    def compiled(self, code: str, **more: Any) -> Function:
        """The function of the exercise's cell, among what the lesson defines and `more`.  Raises
        ValueError where it is not there, and whatever the code does."""
        namespace = script.definitions(self.lesson) | more
        namespace.pop(self.name, None)
        exec(script.defining(code, f"exercise {self.number}", assigns=True), namespace)
        if self.name not in namespace:
            raise ValueError(f"the cell has no function called {self.name}")
        return namespace[self.name]  # type: ignore[no-any-return]


class Verdict(NamedTuple):
    right: bool
    text: str


class _WrongError(Exception):
    """What is said of a function."""


def verdict(exercise: Exercise, function: Function, hints: bool = True) -> Verdict:
    """What is said of a learner's function; without hints only what differs."""
    cases = exercise.cases(np.random.default_rng(0))
    label = f"{exercise.number} {exercise.name}"
    try:
        for case in cases:
            _judge(exercise, function, case, cases if hints else ())
    except _WrongError as wrong:
        return Verdict(False, f"✗ {label}: {wrong}")
    return Verdict(True, f"✓ {label} is right.")


Case = tuple[Any, ...]


def _judge(exercise: Exercise, function: Function, case: Case, cases: Sequence[Case]) -> None:
    """Raises _WrongError."""
    given = _values(_call(exercise, function, case), exercise)
    right = _values(exercise.solution(*copy.deepcopy(case)), exercise)
    asked, names = _asked(exercise.solution, case), ", ".join(exercise.returns)
    if len(given) != len(right):
        raise _WrongError(f"it returns {_counted(len(given), 'value')}, expected {names}.")
    fit = [_fits(*each) for each in zip(exercise.returns, given, right, strict=True)]
    for place, name in enumerate(exercise.returns):
        if fit[place]:
            continue
        wanted = "what it returns" if name == "it" else name
        for places in (range(len(right)), [place]):  # a mistake that explains all, or this value
            if hint := _hint(exercise, function, places, case, cases):
                raise _WrongError(f"{wanted} is not right yet, {asked}.\n  Hint: {hint}")
            for other, value in enumerate(right):
                if not fit[other] and other != place and _equal(given[place], value):
                    wrong = f"{name} is what {exercise.returns[other]} should be"
                    raise _WrongError(f"{wrong}: the order is {names}.")
        raise _WrongError(f"{wanted} {_difference(given[place], right[place])}, {asked}.")


def _hint(
    exercise: Exercise, function: Function, places: Sequence[int], case: Case, cases: Sequence[Case]
) -> str:
    """That of the mistake that makes the same values in these places of this case, and of most
    others; or ""."""
    best, hint = 0, ""
    for mistake, wrong in zip(exercise.mistakes, exercise.wrong, strict=True):
        if not all(_agree(exercise, function, wrong, place, case) for place in places):
            continue
        every = ((other, one) for other in cases for one in range(len(exercise.returns)))
        agree = sum(_agree(exercise, function, wrong, one, other) for other, one in every)
        best, hint = (agree, mistake.hint) if agree > best else (best, hint)
    return hint


def _agree(exercise: Exercise, one: Function, other: Function, place: int, case: Case) -> bool:
    """Whether one of the values that two functions return is the same."""
    first, second = (_result_of(exercise, function, case) for function in (one, other))
    if first is None or second is None:
        return first is second
    there = place < min(len(first), len(second))
    return there and _fits(exercise.returns[place], first[place], second[place])


def _call(exercise: Exercise, function: Function, case: Case) -> Any:
    """What a learner's function returns.  Raises _WrongError where it raises, or changes an
    argument."""
    arguments = copy.deepcopy(case)
    try:
        result = _quietly(function, arguments)
    except (Exception, SystemExit) as error:
        raise _WrongError(
            f"it raises {type(error).__name__}: {one_line(error)}{_line(error)},"
            f" {_asked(exercise.solution, case)}."
        ) from None
    for name, before, after in zip(_names(exercise.solution), case, arguments, strict=False):
        if not _equal(before, after):
            raise _WrongError(
                f"it changes its argument {name}: whoever calls still needs it. Copy it."
            )
    if result is None or result is Ellipsis:
        raise _WrongError(
            "it returns nothing yet: write your code in the place of the dots, or is a `return`"
            " missing?\n  To go on without it: "
            f'{exercise.name} = yours("{exercise.number}")'
        )
    return result


def _result_of(exercise: Exercise, function: Function, case: Case) -> tuple | None:
    """What a function returns; None where it raises."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it has been heard once
            return _values(_quietly(function, copy.deepcopy(case)), exercise)
    except (Exception, SystemExit):
        return None


def _quietly(function: Function, arguments: Case) -> Any:
    """What a function returns: of infinities and the like the check speaks."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*arguments)


def _values(result: Any, exercise: Exercise) -> tuple[Any, ...]:
    several = len(exercise.returns) > 1
    return tuple(result) if several and isinstance(result, (tuple, list)) else (result,)


def _names(function: Function) -> list[str]:
    return [*inspect.signature(function).parameters]


def _asked(function: Function, case: Case) -> str:
    """With which arguments, in short."""
    each = [f"{name} {_short(value)}" for name, value in zip(_names(function), case, strict=False)]
    return f"with {', '.join(each)}"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        text = " ".join(np.array2string(value, precision=4, separator=", ").split())
        return f"= {text}" if len(text) <= 60 else f"of shape {value.shape}"
    if isinstance(value, tuple) and any(isinstance(part, np.ndarray) for part in value):
        shapes = (getattr(part, "shape", part) for part in value)
        return f"of shapes {', '.join(map(str, shapes))}"
    if isinstance(value, dict) and any(isinstance(part, np.ndarray) for part in value.values()):
        return f"with {_counted(len(value), 'array')}"
    if isinstance(value, list) and any(not isinstance(part, int) for part in value):
        return f"with {_counted(len(value), 'element')}"
    text = getattr(value, "__name__", " ".join(repr(value).split()))
    return f"= {text}" if len(text) <= 60 else f"= {text[:50]}…"


def _counted(count: int, of: str) -> str:
    return f"{count} {of}{'s' * (count != 1)}"


def _line(error: BaseException) -> str:
    """The line of the learner's that it was raised in or below."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "ipykernel" in path or path.startswith("<") or "ipython" in path:
            found = linecache.getline(path, trace.tb_lineno).strip() or found
        trace = trace.tb_next
    return f" (in: {found})" if found else ""


# --- how two values differ ---


def _fits(name: str, given: Any, right: Any) -> bool:
    """Whether a value that is called so is right: a cache may hold more than is asked for, and what
    is to have 8 bits has them."""
    if name == "cache" and isinstance(given, dict) and isinstance(right, dict):
        given = {key: given[key] for key in right if key in given}
    of_8_bits = [getattr(value, "dtype", None) == np.int8 for value in (given, right)]
    try:
        return _equal(given, right) and of_8_bits[0] == of_8_bits[1]
    except (TypeError, ValueError, OverflowError):  # of what can't be compared
        return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(other, dict):
        same = isinstance(one, dict) and one.keys() == other.keys()
        return same and all(_equal(one[name], other[name]) for name in other)
    if isinstance(other, (list, tuple)) and isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if _is_number(one) and _is_number(other):
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape or one.dtype.kind not in "biuf":
            return False
        digits = (1e-4, 1e-5) if one.dtype == np.float32 else (1e-7, 1e-9)  # that it has, nearly
        return np.allclose(one, other, *digits, equal_nan=True)
    return type(one) is type(other) and bool(np.all(one == other))


def _is_number(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic, int, float)) and not isinstance(value, str)


def _difference(given: Any, right: Any) -> str:
    """In words: "has the shape …", "has the wrong sign", …"""
    if isinstance(right, dict) and isinstance(given, dict):
        if missing := [name for name in right if name not in given]:
            return f"lacks {missing[0]!r}"
        if more := [name for name in given if name not in right]:
            return f"has a name too many, {more[0]!r}"
        name = next(name for name in right if not _equal(given[name], right[name]))
        return f"is not right yet: {name!r} {_difference(given[name], right[name])}"
    if not (_is_number(given) and _is_number(right)):
        if isinstance(right, (list, tuple)) and isinstance(given, (list, tuple)):
            if len(given) != len(right):
                return f"has {_counted(len(given), 'element')}, expected {len(right)}"
            place = next(n for n, value in enumerate(right) if not _equal(given[n], value))
            if isinstance(right[place], np.ndarray):
                part = _difference(given[place], right[place])
                return f"is not right yet: element {place} {part}"
        if isinstance(given, (list, tuple)) and isinstance(right, np.ndarray):
            return "is a list, expected an array: np.array makes one of it"
        if type(given) is not type(right) and isinstance(right, (list, np.ndarray)):
            kinds = {list: "a list", np.ndarray: "an array"}
            kind = kinds.get(type(given), _clipped(given))
            return f"is {kind}, expected {kinds[type(right)]}"
        return f"is {_clipped(given)}, expected {_clipped(right)}"
    given, right = np.asarray(given), np.asarray(right)
    if given.shape != right.shape:
        turned = given.ndim == 2 and given.shape == right.shape[::-1]
        other_way = ": the other way round" if turned else ""
        return f"has the shape {given.shape}, expected {right.shape}{other_way}"
    if given.dtype.kind not in "biuf" or (right.dtype == np.int8 != given.dtype):
        return f"has the dtype {given.dtype}, expected {right.dtype}"
    said = next(_described(given.astype(float), right.astype(float)))
    few = " (in float32: compute in float64)" if given.dtype == np.float32 != right.dtype else ""
    return said + few


def _described(given: np.ndarray, right: np.ndarray) -> Iterator[str]:
    bad = ~np.isfinite(given) & np.isfinite(right)
    if bad.any():
        count = int(np.count_nonzero(bad))
        are = "that is" if count == 1 else "that are"
        several = f"has {_counted(count, 'number')} {are}" if right.size > 1 else "is"
        yield f"{several} NaN or infinite"
    if _equal(given, -right):
        yield "has the wrong sign"
    finite = np.isfinite(right)
    scale = np.vdot(right[finite], right[finite])
    factor = float(np.vdot(given[finite], right[finite]) / scale) if scale > 0 else 0.0
    differs = abs(factor) > 1e-9 and abs(factor - 1) > 1e-3
    if right.size > 1 and differs and _equal(given, factor * right):
        whole = max(abs(factor), 1 / abs(factor))
        simple = abs(whole - round(whole)) < 1e-6
        guess = "a sum for a mean, or a factor forgotten?" if simple else "which factor is it?"
        yield f"is {factor:.6g} times the right one: {guess}"
    zeros = [values[finite] == 0 for values in (given, right)]
    if min(z.any() for z in zeros) and (zeros[0] & ~zeros[1]).any():
        yield "is 0 in places where it should not be: another mask, or other rows?"
    apart = given - right
    if right.ndim > 1 and right.shape[-1] > 1 and _equal(apart - apart[..., :1], 0 * apart):
        yield "agrees but for a constant a row: is one of the paths missing?"
    wrong = ~np.isclose(given, right, 1e-7, 1e-9, equal_nan=True)
    sizes = np.where(wrong, np.nan_to_num(abs(apart), nan=np.inf), -1)
    place = tuple(int(i) for i in np.unravel_index(sizes.argmax(), sizes.shape))
    index = f" at {list(place)}" if place else ""
    alike = abs(given[place] - right[place]) < 1e-4 * abs(right[place])
    digits = 12 if alike else 6
    share = f"{right.size - np.count_nonzero(wrong)} of {right.size} numbers are right; "
    said, wanted = (f"{values[place]:.{digits}g}" for values in (given, right))
    how_many = share if right.size > 1 else ""
    yield f"is not right yet: {how_many}it is {said}{index}, expected {wanted}"


def _clipped(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}…"
