"""numgpt lessons: the course, as notebooks."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from numgpt.cli.common import add_command, check_directory_name
from numgpt.lessons.course import LESSONS
from numgpt.lessons.notebooks import write_notebooks
from numgpt.messages import quoted, tell


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "lessons",
        "write the course, notebooks with exercises that check themselves",
        "numgpt lessons\nnumgpt lessons course --list",
        run,
    )
    parser.add_argument(
        "directory",
        nargs="?",
        default="lessons",
        metavar="DIR",
        help="where they are written; a notebook that you have changed stays as it is (default:"
        " lessons)",
    )
    parser.add_argument("--list", action="store_true", help="list the lessons, and write nothing")


def run(options: argparse.Namespace) -> None:
    if options.list:
        for lesson in LESSONS:
            print(
                f"{lesson.number:2}  {lesson.title}: {lesson.afterwards} ({lesson.minutes} minutes;"
                f" needs {lesson.needs})"
            )
        return
    check_directory_name("DIR", options.directory)
    written = write_notebooks(options.directory)
    for notebook in written:
        if notebook.kept:
            changed = "stays as it is: it has been changed since it was written"
            tell(f"numgpt: note: {notebook.path} {changed}")
    for notebook in written:
        print(notebook.path)
    if importlib.util.find_spec("jupyterlab") is None:
        tell("they open in Jupyter, in VS Code, or in: pip install 'numgpt[lessons]'")
    tell(f"try: jupyter lab {quoted(written[0].path)}")
