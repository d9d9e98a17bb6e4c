"""A lesson's script -> its cells.

A lesson is a Python script in jupytext's percent format: `# %%` begins a cell, `# %% [markdown]`
one of prose, whose lines are comments. It runs from top to bottom as it stands, its exercises
solved. A cell with an exercise has its number behind the `# %%`, and its solution below a comment
that says so; what the learner finds in its place is `...`, or the lines that begin with `#:`.

    # %% exercise="2.1"
    def double(x):
        \"\"\"x -> 2x.\"\"\"
        #: return x * x
        # solution
        return 2 * x
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

HERE = Path(__file__).parent
MARK = re.compile(r'^# %%(?P<prose> \[markdown\])?(?: exercise="(?P<exercise>[\d.]+)")?$')
SOLUTION = re.compile(r"^(?P<indent> *)# solution\n(?P<code>(?:(?P=indent).*\n|\n)*)", re.MULTILINE)
GIVEN = re.compile(r"^(?P<indent> *)#: ?(?P<code>.*)\n", re.MULTILINE)
NOTEBOOKS = re.compile(r"^[%!].*$", re.MULTILINE)
STUB = "...  # your code"
SOLUTIONS = "solutions"  # stands for `yours`, in what is defined without running a lesson


class Cell(NamedTuple):
    """A part of a lesson."""

    source: str  # prose in Markdown, or code
    is_prose: bool
    exercise: str = ""  # its number

    @property
    def stub(self) -> str:
        """What the learner gets: the code without its solution."""
        given = GIVEN.search(self.source) is not None
        code = SOLUTION.sub("" if given else rf"\g<indent>{STUB}\n", self.source + "\n")
        return GIVEN.sub(r"\g<indent>\g<code>\n", code).strip("\n")

    @property
    def solved(self) -> str:
        """The code with its solution, and nothing of what the learner gets instead."""
        return SOLUTION.sub(r"\g<code>", GIVEN.sub("", self.source + "\n")).strip("\n")


def cells(text: str) -> list[Cell]:
    """The cells of a script, in order."""
    found: list[Cell] = []
    mark, lines = None, list[str]()
    for line in [*text.splitlines(), "# %%"]:
        if (next_mark := MARK.match(line)) is None:
            lines.append(line)
            continue
        if mark is not None:
            prose = mark["prose"] is not None
            source = "\n".join(re.sub("^# ?", "", one) if prose else one for one in lines)
            found.append(Cell(source.strip("\n"), prose, mark["exercise"] or ""))
        mark, lines = next_mark, []
    return found


def script_of(lesson: int) -> Path:
    """The file of a lesson, by its number."""
    (path,) = HERE.glob(f"{lesson:02}_*.py")
    return path


@functools.cache
def cells_of(lesson: int) -> tuple[Cell, ...]:
    """The cells of a lesson, by its number."""
    return tuple(cells(script_of(lesson).read_text(encoding="utf-8")))


@functools.cache
def definitions(lesson: int) -> dict[str, Any]:
    """What a lesson imports and defines, its exercises solved, and the solutions of others where
    it takes those; nothing else of it is run."""
    from numgpt.lessons.exercises import EXERCISES  # which are checked with what this returns

    def solutions(*numbers: str) -> Any:
        found = [EXERCISES[number].solution for number in numbers]
        return found if len(found) > 1 else found[0]

    namespace: dict[str, Any] = {"__name__": f"lesson {lesson}", SOLUTIONS: solutions}
    for cell in cells_of(lesson):
        if not cell.is_prose:
            exec(defining(cell.solved, f"lesson {lesson}"), namespace)
    return namespace


def defining(code: str, name: str, assigns: bool = False) -> CodeType:
    """Only what imports and defines: functions, classes, and names in capitals; or whatever
    assigns. Lines for the notebook itself, such as %time, are left out."""
    tree = ast.parse(NOTEBOOKS.sub("", code))
    tree.body = [one for one in tree.body if _defines(one) or (assigns and _assigns(one))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "yours":
            node.func = ast.copy_location(ast.Name(SOLUTIONS, ast.Load()), node.func)
    return compile(tree, f"<{name}>", "exec")


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        names = [n.id for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        calls_for_yours = "yours(" in ast.unparse(statement.value)
        return calls_for_yours or all(name.isupper() and len(name) > 1 for name in names)
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return "matplotlib" not in ast.unparse(statement)
    return isinstance(statement, (ast.FunctionDef, ast.ClassDef))


def _assigns(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign))
