"""What a notebook calls."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from numgpt.lessons import script
from numgpt.lessons.checking import Exercise, verdict
from numgpt.lessons.course import LESSONS
from numgpt.lessons.exercises import EXERCISES
from numgpt.messages import one_line, shown

# Readable on light and on dark pages. Two greys, as Jupyter puts a background behind a transparent
# figure whose ticks are all lighter, or all darker, than the middle.
GREY, OTHER_GREY = "#828282", "#7c7c7c"
COLOURS = ("#3b82c4", "#d9730d", "#2f9e6e", "#b5558f", "#a08a1f")


def check(function: Callable[..., Any], number: str | None = None) -> None:
    """Print whether a function solves the exercise of its name, or of this number; where it does
    not, what differs, and a hint where the mistake is a typical one."""
    exercise = _exercise(function, number)
    if function is exercise.solution:
        print(f"✓ {exercise.number} {exercise.name}: the course's")
        return
    right, text = verdict(exercise, function, hints=not _as_given(exercise, function))
    print(text if right else text + _because_of_another(exercise, function))


def _as_given(exercise: Exercise, function: Callable[..., Any]) -> bool:
    """Whether it is still the code whose fault is to be found."""
    codes = [getattr(one, "__code__", None) for one in (function, exercise.given)]
    return None not in codes and _facts(codes[0]) == _facts(codes[1])


def _facts(code: Any) -> Any:
    """What a code does, wherever it stands: that of its own functions, too."""
    if not isinstance(code, CodeType):
        return code
    return code.co_code, code.co_names, [*map(_facts, code.co_consts)]


def _because_of_another(exercise: Exercise, function: Callable[..., Any]) -> str:
    """Which of the other exercises' functions that it calls is not right; "" where all are."""
    names = _looked_up(getattr(function, "__code__", None))
    for other in EXERCISES.values():
        if other.name in names and other is not exercise:
            called = function.__globals__.get(other.name)
            if callable(called) and not verdict(other, called).right:
                return (
                    f"\n  It calls your {other.name}, which is not right yet: mend {other.number}"
                    f' first, or {other.name} = yours("{other.number}")'
                )
    return ""


def _looked_up(code: CodeType | None) -> set[str]:
    """The names that a function's code looks up, also within the functions that it defines."""
    if code is None:
        return set()
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(_looked_up, inner))


def solution(number: str) -> None:
    """Print the solution of an exercise."""
    print(_numbered(number).cell.solved)


def yours(*numbers: str) -> Any:
    """The functions of these exercises, as they stand in the exercises' cells of the notebooks
    beside this one, which have to be saved; in the place of one that is missing or not right, the
    course's, which is said.  One, or a list."""
    if not numbers:
        raise ValueError(f'name an exercise or several, such as "{next(iter(EXERCISES))}"')
    found = [_yours(_numbered(number)) for number in numbers]
    return found if len(found) > 1 else found[0]


def _yours(exercise: Exercise) -> Callable[..., Any]:
    path = Path(f"{script.script_of(exercise.lesson).stem}.ipynb")
    label = f"{exercise.number} {exercise.name}"
    try:
        code, others = _written(path, exercise)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        print(f"{label}: the course's, as there is none of yours in {path}")
        return exercise.solution
    try:
        own = exercise.compiled(code, **_defined(exercise, others))
        right, text = verdict(exercise, own)
    except (Exception, SystemExit) as error:  # whatever the cell does
        right, text = False, f"the cell in {path} raises {type(error).__name__}: {one_line(error)}"
    if right:
        print(f"{label}: yours")
        return own
    print(f"{label}: the course's, as yours is not right yet\n  {text}")
    return exercise.solution


def _written(path: Path, exercise: Exercise) -> tuple[str, list[str]]:
    """The code of an exercise's cell, the last of several; and that of the other cells."""
    if not path.is_file():
        raise FileNotFoundError(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    codes = [c for c in cells if c["cell_type"] == "code"]
    own = [c for c in codes if c["metadata"].get("exercise") == exercise.number]
    if not own:
        raise KeyError(exercise.number)
    return "".join(own[-1]["source"]), ["".join(c["source"]) for c in codes if c not in own]


def _defined(exercise: Exercise, codes: list[str]) -> dict[str, Any]:
    """What an answer may use: earlier exercises' functions, and what its notebook's other cells
    import and define."""
    namespace: dict[str, Any] = {"np": np}
    for code in codes:
        with contextlib.suppress(Exception, SystemExit):  # a cell that is not finished
            exec(script.defining(code, f"lesson {exercise.lesson}"), namespace)
    earlier = {e.name: e.solution for e in EXERCISES.values() if e.lesson < exercise.lesson}
    return earlier | namespace


def _exercise(function: Callable[..., Any], number: str | None) -> Exercise:
    if number is not None:
        return _numbered(number)
    name = getattr(function, "__name__", "")
    for exercise in EXERCISES.values():
        if exercise.name == name:
            return exercise
    raise ValueError(
        f"no exercise has a function called {shown(name)}: say which it solves,"
        f' check(…, "{next(iter(EXERCISES))}")'
    )


def _numbered(number: object) -> Exercise:
    if str(number) in EXERCISES:
        return EXERCISES[str(number)]
    lesson = str(number).partition(".")[0]
    of_lesson = [f"{e.number} {e.name}" for e in EXERCISES.values() if str(e.lesson) == lesson]
    there = f"lessons are 1 to {len(LESSONS)}"
    if of_lesson:
        there = f"lesson {lesson} has {', '.join(of_lesson)}"
    raise ValueError(f"there is no exercise {shown(number)}: {there}")


def figure(rows: int = 1, columns: int = 1, width: float = 4.5, height: float = 3.0) -> Any:
    """matplotlib's figure and axes, each of width x height inches, to be read on light and on dark
    pages."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("figure draws by matplotlib: pip install 'numgpt[lessons]'") from None

    look: dict[str, Any] = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    look |= dict.fromkeys((*names, "axes.titlecolor"), GREY) | {"ytick.color": OTHER_GREY}
    look |= {"axes.prop_cycle": plt.cycler(color=COLOURS), "legend.frameon": False}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    plt.rcParams.update(look)  # type: ignore[arg-type]
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained")
