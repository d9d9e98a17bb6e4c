"""Lessons -> notebooks.  A notebook is JSON (nbformat 4.5): its cells, their kinds and sources."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from numgpt.files import replacing
from numgpt.lessons.course import LESSONS, Lesson
from numgpt.lessons.script import Cell, cells_of, script_of

DIGEST = "sha256"
PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


class Written(NamedTuple):
    """What has become of a notebook."""

    path: Path
    kept: bool  # as the learner has changed it


def notebook(lesson: int) -> dict[str, Any]:
    """A lesson as a notebook: its exercises open, their solutions folded away at its end."""
    parts = [_cell(cell, cell.source if cell.is_prose else cell.stub) for cell in cells_of(lesson)]
    solved = [cell for cell in cells_of(lesson) if cell.exercise]
    parts += [_cell(Cell(text, True), text) for text in ["## Solutions", *map(_folded, solved)]]
    for place, part in enumerate(parts):
        part["id"] = f"lesson-{lesson}-{place}"
    own: dict[str, Any] = {"lesson": lesson}
    made: dict[str, Any] = {"cells": parts, "nbformat": 4, "nbformat_minor": 5}
    made["metadata"] = {"kernelspec": PYTHON, "numgpt": own}
    own[DIGEST] = _digest(made)
    return made


def _digest(made: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _cell(cell: Cell, source: str) -> dict[str, Any]:
    metadata = {"exercise": cell.exercise} if cell.exercise else {}
    part = {"metadata": metadata, "source": source.splitlines(keepends=True)}
    if cell.is_prose:
        return {"cell_type": "markdown"} | part
    return {"cell_type": "code", "execution_count": None, "outputs": []} | part


def _folded(cell: Cell) -> str:
    return (
        f"<details><summary>Solution of {cell.exercise}</summary>\n\n```python\n{cell.solved}\n"
        "```\n\n</details>"
    )


def _dumped(made: dict[str, Any]) -> str:
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def write_notebooks(directory: str | os.PathLike) -> list[Written]:
    """A notebook a lesson.  What is there stays as it is, unless it is just what this or another
    version of numgpt wrote.  Raises NotADirectoryError for a file."""
    directory = Path(directory)
    if os.path.lexists(directory) and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is no directory: name another")
    directory.mkdir(parents=True, exist_ok=True)
    return [_write(directory, lesson) for lesson in LESSONS]


def _write(directory: Path, lesson: Lesson) -> Written:
    path = directory / f"{script_of(lesson.number).stem}.ipynb"
    if os.path.lexists(path) and not _as_written(path):
        return Written(path, kept=True)
    text = _dumped(notebook(lesson.number))
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        with replacing(path) as file:
            file.write(text.encode())
    return Written(path, kept=False)


def _as_written(path: Path) -> bool:
    """Whether nobody has touched a notebook: not even by running it, as its output is theirs."""
    try:
        there = json.loads(path.read_bytes()) if path.is_file() else {}
        return bool(there["metadata"]["numgpt"].pop(DIGEST) == _digest(there))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return False  # no notebook, or not ours
