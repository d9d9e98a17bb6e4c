"""What a notebook calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numgpt.lessons import script
from numgpt.lessons.checking import Exercise, verdict
from numgpt.lessons.exercises import EXERCISES
from numgpt.messages import shown

# Readable on light and on dark pages. Two greys, as Jupyter puts a background behind a transparent
# figure whose ticks are all lighter, or all darker, than the middle.
GREY, OTHER_GREY = "#828282", "#7c7c7c"
COLOURS = ("#3b82c4", "#d9730d", "#2f9e6e", "#b5558f", "#a08a1f")


def check(function: Callable[..., Any], number: str | None = None) -> None:
    """Print whether a function solves the exercise of its name, or of this number; where it does
    not, what differs, and a hint where the mistake is a typical one."""
    print(verdict(_exercise(function, number), function).text)


def solution(number: str) -> None:
    """Print the solution of an exercise."""
    print(_numbered(number).cell.solved)


def yours(*numbers: str) -> Any:
    """The functions of these exercises as you wrote them in the notebooks beside this one; in the
    place of one that is missing or not right, the course's, which is said.  One, or a list."""
    found = [_yours(_numbered(number)) for number in numbers]
    return found if len(found) > 1 else found[0]


def _yours(exercise: Exercise) -> Callable[..., Any]:
    path = Path(f"{script.script_of(exercise.lesson).stem}.ipynb")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        wanted = (c for c in cells if c["metadata"].get("exercise") == exercise.number)
        own = exercise.compiled("".join(next(wanted)["source"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration, SyntaxError, NameError):
        print(f"{exercise.number} {exercise.name}: the course's ({path} has none of yours)")
        return exercise.solution
    if verdict(exercise, own).right:
        print(f"{exercise.number} {exercise.name}: yours")
        return own
    print(f"{exercise.number} {exercise.name}: the course's (yours is not right yet)")
    return exercise.solution


def _exercise(function: Callable[..., Any], number: str | None) -> Exercise:
    if number is not None:
        return _numbered(number)
    name = getattr(function, "__name__", "")
    for exercise in EXERCISES.values():
        if exercise.name == name:
            return exercise
    raise ValueError(f"no exercise has a function called {shown(name)}: {_all()}")


def _numbered(number: str) -> Exercise:
    if number not in EXERCISES:
        raise ValueError(f"there is no exercise {shown(number)}: {_all()}")
    return EXERCISES[number]


def _all() -> str:
    return "there are " + ", ".join(f"{e.number} {e.name}" for e in EXERCISES.values())


def figure(rows: int = 1, columns: int = 1, width: float = 4.5, height: float = 3.0) -> Any:
    """matplotlib's figure and axes, each of width x height inches, to be read on light and on dark
    pages."""
    import matplotlib.pyplot as plt

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
