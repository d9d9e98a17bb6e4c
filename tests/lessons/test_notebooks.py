"""Lessons run, become notebooks, and never take the place of what a learner has written."""

import json
import os
import re
import time
from pathlib import Path

import pytest

import numgpt
from numgpt.insight.formulas import FORMULAS
from numgpt.lessons import notebooks, script, yours
from numgpt.lessons.course import LESSONS
from numgpt.lessons.exercises import EXERCISES
from numgpt.lessons.notebooks import notebook, write_notebooks
from numgpt.lessons.script import cells, cells_of

NUMBERS = [lesson.number for lesson in LESSONS]
README = Path(numgpt.__file__).parent / "lessons/README.md"


@pytest.mark.live("matplotlib")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_lesson_runs_solved(number, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)  # where no notebook has functions of a learner's
    namespace = {"__name__": "lesson"}
    began, exercises = time.perf_counter(), 0
    for cell in cells_of(number):
        if not cell.is_prose:
            exec(compile(cell.solved, f"lesson {number}", "exec"), namespace)
            exercises += cell.exercise != ""
    printed = capsys.readouterr().out
    assert printed.count("✓ ") == exercises
    assert "✗ " not in printed
    figures = __import__("matplotlib.pyplot").pyplot
    assert figures.get_fignums()
    figures.close("all")
    assert time.perf_counter() - began < 600


def test_the_table_of_the_readme_is_that_of_the_lessons():
    rows = re.findall(
        r"^\| (\d+) \| \[(.+?)\]\((.+?)\) \| (.+?) \| (\d+) \| (.+?) \|$",
        README.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    names = [script.script_of(number).name for number in NUMBERS]
    assert rows == [
        (str(x.number), x.title, name, x.afterwards, str(x.minutes), x.needs)
        for x, name in zip(LESSONS, names, strict=True)
    ]
    for lesson in LESSONS:
        first = cells_of(lesson.number)[0]
        assert first.source.startswith(f"# {lesson.number} {lesson.title}\n")


def test_cells():
    text = (
        '# %% [markdown]\n# # One\n#\n# Prose.\n\n# %%\nx = 1\n\n# %% exercise="1.1"\ndef f(x):\n'
        '    """x -> 2x."""\n    #: return x\n    # solution\n    y = x\n\n    return 2 * y\n\n'
        "print(f(2))\n"
    )
    prose, code, exercise = cells(text)
    assert prose == ("# One\n\nProse.", True, "")
    assert (code.source, code.exercise, exercise.exercise) == ("x = 1", "", "1.1")
    assert exercise.stub == 'def f(x):\n    """x -> 2x."""\n    return x\nprint(f(2))'
    solved = 'def f(x):\n    """x -> 2x."""\n    y = x\n\n    return 2 * y\n\nprint(f(2))'
    assert exercise.solved == solved
    (alone,) = cells('# %% exercise="1.2"\ndef g():\n    # solution\n    return 1\n')
    assert alone.stub == "def g():\n    ...  # your code"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_has_the_exercises_open_and_the_solutions_folded_away(number):
    made = notebook(number)
    json.dumps(made)
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in made["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", id) for id in ids)
    kinds = ["markdown" if cell.is_prose else "code" for cell in cells_of(number)]
    assert [cell["cell_type"] for cell in made["cells"]][: len(kinds)] == kinds
    assert {cell["cell_type"] for cell in made["cells"][len(kinds) :]} == {"markdown"}
    open_ones = {c["metadata"]["exercise"]: c for c in made["cells"] if "exercise" in c["metadata"]}
    folded = [c for c in made["cells"] if "".join(c["source"]).startswith("<details>")]
    assert len(folded) == len(open_ones) > 0
    for cell in open_ones.values():
        source = "".join(cell["source"])
        assert "solution" not in source
        assert cell["outputs"] == []
    for cell, number in zip(folded, open_ones, strict=True):
        source = "".join(cell["source"])
        assert f"<summary>Solution of {number}</summary>" in source
        assert source.endswith("\n```\n\n</details>")


@pytest.mark.live("nbformat")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_is_valid(number):
    import nbformat

    nbformat.validate(nbformat.from_dict(notebook(number)))


def test_what_a_learner_has_changed_stays(tmp_path, monkeypatch):
    course = tmp_path / "a" / "course"
    first = write_notebooks(course)
    assert [w.kept for w in first] == [False] * len(LESSONS)
    paths = [w.path for w in first]
    before = paths[0].read_bytes()
    assert [w.kept for w in write_notebooks(course)] == [False] * len(LESSONS)
    assert paths[0].read_bytes() == before
    # A cell that was edited; one that was only run; a file of another's; one that is damaged.
    edited = json.loads(paths[0].read_text())
    edited["cells"][1]["source"] = ["x = 1"]
    run = json.loads(paths[1].read_text())
    next(c for c in run["cells"] if c["cell_type"] == "code")["execution_count"] = 1
    theirs = [json.dumps(edited), json.dumps(run), '{"cells": []}', "no JSON"]
    for path, text in zip(paths, theirs, strict=False):
        path.write_text(text)
    # Another version's notebook that nobody touched is brought up to date.
    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "PYTHON", {"name": "python3", "display_name": "older"})
        patch.setattr(notebooks, "_folded", lambda cell: "the text of another version")
        paths[4].unlink()
        write_notebooks(course)
    assert "another version" in paths[4].read_text()
    # Only its metadata, as another kernel's name.
    renamed = json.loads(paths[5].read_text())
    renamed["metadata"]["kernelspec"]["name"] = "mine"
    theirs.append(json.dumps(renamed))
    paths[5].write_text(theirs[-1])
    paths[6].unlink()
    os.mkfifo(paths[6])
    kept = [w.kept for w in write_notebooks(course)]
    assert kept == [True] * 4 + [False, True, True] + [False] * (len(LESSONS) - 7)
    assert [path.read_text() for path in (*paths[:4], paths[5])] == theirs
    assert "another version" not in paths[4].read_text()


def test_a_link_that_leads_nowhere_is_somebodys(tmp_path):
    path = tmp_path / f"{script.script_of(1).stem}.ipynb"
    path.symlink_to(tmp_path / "gone")
    assert write_notebooks(tmp_path)[0].kept
    assert path.is_symlink()


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Puts code into the cell of an exercise, in a directory with the notebooks -> the notebook
    and its path."""
    monkeypatch.chdir(tmp_path)
    paths = [written.path for written in write_notebooks(tmp_path)]

    def put(code, exercise="2.3"):
        path = paths[int(exercise.split(".")[0]) - 1]
        changed = json.loads(path.read_text())
        (cell,) = (c for c in changed["cells"] if c["metadata"].get("exercise") == exercise)
        cell["source"] = code
        path.write_text(json.dumps(changed))
        return changed, path

    return put


def test_yours(put, capsys):
    own = "def linear_forward(x, weight, bias):\n    return mine(x, weight) + bias, (x, weight)\n"
    put([own, "\ndef mine(x, weight):\n    return x @ weight\n"])
    forward, backward = yours("2.3", "2.4")
    said = capsys.readouterr().out
    assert said.startswith("2.3 linear_forward: yours\n2.4 linear_backward: the course's, as yours")
    assert "mine" in forward.__code__.co_names
    assert "mine" not in backward.__code__.co_names


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "2.3 linear_forward: it returns nothing yet"),
        ("def linear_forward(x", "raises SyntaxError: "),
        ("import no_such_module", "raises ModuleNotFoundError: No module named 'no_such_module'"),
        ("def other(x, weight, bias):\n    return 1", "has no function called linear_forward"),
        ("", "has no function called linear_forward"),
        (
            "def linear_forward(x, weight, bias):\n    return product(x, weight)",
            "it raises NameError: name 'product' is not defined",
        ),
        ("linear_forward = lambda x, weight, bias: 1", "it returns 1 value, expected y, cache"),
        ("def linear_forward(x, weight, bias):\n    raise SystemExit", "it raises SystemExit"),
        ("raise SystemExit\n", "has no function called linear_forward"),
    ],
)
def test_yours_that_is_not_right_is_the_courses_and_why_is_said(put, capsys, code, said):
    if code is not None:
        put(code)
    assert yours("2.3") is EXERCISES["2.3"].solution
    first, second = capsys.readouterr().out.split("\n")[:2]
    assert first == "2.3 linear_forward: the course's, as yours is not right yet"
    assert said in second


@pytest.mark.parametrize(
    "damage", ["no JSON", "[]", '{"cells": [1]}', '{"cells": []}', "[" * 200_000, None]
)
def test_yours_without_a_notebook_is_the_courses(put, capsys, damage):
    _, path = put("")
    path.unlink() if damage is None else path.write_text(damage)
    assert yours("2.3") is EXERCISES["2.3"].solution
    said = "the course's, as there is none of yours in 02_from_a_neuron_to_a_layer.ipynb\n"
    assert said in capsys.readouterr().out


def test_yours_may_use_what_earlier_lessons_have(put, capsys):
    own = (
        "def attention(q, k, v):\n"
        "    s = np.where(np.tri(len(q)) > 0, q @ k.T / math.sqrt(q.shape[1]), -np.inf)\n"
        "    p = softmax(s)\n    return half * 2 * p @ v, p\nhalf = 0.5\n%time 1\n"
    )
    changed, path = put(own, "5.1")
    first = next(c for c in changed["cells"] if c["cell_type"] == "code")
    first["source"] = "import math\nno_such_thing()"
    changed["cells"].append({"cell_type": "code", "source": "not finished (", "metadata": {}})
    path.write_text(json.dumps(changed))
    assert "softmax" in yours("5.1").__code__.co_names
    assert capsys.readouterr().out == "5.1 attention: yours\n"


def test_the_page_of_explain_names_the_lesson_of_each_step():
    stems = {script.script_of(number).stem for number in NUMBERS}
    assert {formula.lesson for formula in FORMULAS.values()} <= stems
