"""The README's blocks do what they say: Python is run, and shell too, on models of a tiny size."""

import functools
import json
import re
import shlex
from pathlib import Path

import pytest

import numgpt
from numgpt import cli
from numgpt.formats.names import models_directory

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
LESSON = (Path(numgpt.__file__).parent / "lessons/gpt.py").read_text(encoding="utf-8")
PYTHON = [code for kind, code in BLOCKS if kind == "python" and not code.startswith("def gpt(")]
TRAINING = (Path(numgpt.__file__).parent / "training/README.md").read_text(encoding="utf-8")
for package in ("generation", "insight", "training"):
    text = (Path(numgpt.__file__).parent / package / "README.md").read_text(encoding="utf-8")
    PYTHON += re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
text = (Path(numgpt.__file__).parent / "models/README.md").read_text(encoding="utf-8")
PYTHON.append("\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)))  # in one
SHELL = [line for kind, code in BLOCKS if kind == "sh" for line in code.splitlines()]
COMMANDS = [line for line in SHELL if re.search(r"(^|\| |/)numgpt ", line)]
TINY = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 --batch-size 2 --eval-batches 1"
TINY += " --steps 3 --sample-every 0 --vocab-size 300"
SECOND = "--steps 4"  # of a run that goes on


def has_smollm2() -> bool:
    return (models_directory() / "smollm2").is_dir()


def test_all_of_gpt_stands_there_as_it_is_in_its_file():
    (shown,) = (code for kind, code in BLOCKS if code.startswith("def gpt("))
    function = LESSON[LESSON.index("def gpt(") :]
    assert shown == function[: function.index("\n\n\n") + 1]
    assert 180 <= len(README.read_text(encoding="utf-8").splitlines()) <= 220


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run(number, tmp_path, monkeypatch, capsys):
    code = PYTHON[number]
    if "smollm2" in code and not has_smollm2():
        pytest.skip("needs the downloaded model: numgpt download smollm2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(numgpt, "Chat", functools.partial(numgpt.Chat, max_new_tokens=10))
    exec(compile(code, f"README block {number}", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def arguments(line: str) -> list[str]:
    """What a line of shell gives to numgpt; comments left out."""
    words = shlex.split(line, comments=True)
    start = next(place for place, word in enumerate(words) if word.split("/")[-1] == "numgpt")
    return [word for word in words[start + 1 :] if word not in ("&&", "|")]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:60])
def test_shell_blocks_use_flags_that_exist(line):
    given = arguments(line)
    if "…" not in line:
        assert cli._parser().parse_args(given).run is not None


def test_the_lines_on_training_work_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("book.txt", "more.txt", "other.txt", "tinyshakespeare.txt"):
        (tmp_path / name).write_text(f"It was a dark and stormy night in {name}. " * 200)
    begun: set[str] = set()
    ran = 0
    for line in COMMANDS:
        given = arguments(line)
        needs = {"gpt2", "smollm2"} & set(given)
        if given[0] not in ("train", "generate", "eval") or needs or "models/" in line:
            continue
        if "runs/desk" in line:  # what is tuned, below
            continue
        if given[0] == "train" and "--resume" in given:
            place = given.index("--steps") if "--steps" in given else len(given)
            given = given[:place] + SECOND.split()
        elif given[0] == "train":
            out = given[given.index("--out") + 1]
            tiny = TINY.replace(" --vocab-size 300", "") if "char" in given else TINY
            if "--init-from" in given:
                tiny = "--batch-size 2 --eval-batches 1 --steps 3 --sample-every 0"
            given += [*tiny.split(), *(["--overwrite"] if out in begun else [])]
            begun.add(out)
        elif given[0] == "generate":
            given += ["--max-new-tokens", "5"] if "--max-length" not in given else []
        assert cli.main(given) == 0, (line, capsys.readouterr().err)
        ran += 1
    assert ran >= 7
    assert begun


@pytest.mark.parametrize("kind", ["conversations", "texts"])
def test_the_lines_on_tuning_suit_both_kinds(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    example = (
        {"messages": talk} if kind == "conversations" else {"prompt": "Hi", "completion": " Ho"}
    )
    (tmp_path / "answers.jsonl").write_text((json.dumps(example) + "\n") * 4)
    (tmp_path / "asked.txt").write_text("Hi")
    lines = [*COMMANDS, *re.findall("^numgpt .*", TRAINING, re.M)]
    tuned = {tuple(arguments(line)): line for line in lines if "runs/desk" in line}.values()
    for line in tuned:
        given = ["shakespeare" if word == "smollm2" else word for word in arguments(line)]
        if given[:2] == ["tune", "sft"]:
            given = (
                [*given[: given.index("--steps")], "--steps", "3"]
                if "--steps" in given
                else [*given, "--steps", "2"]
            )
        elif given[0] in ("generate", "chat"):
            given += ["--max-new-tokens", "5"]
        with open(tmp_path / "asked.txt") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            assert cli.main(given + ["--overwrite"] * ("--out" in given)) == 0, (
                line,
                capsys.readouterr().err,
            )
    assert {arguments(line)[0] for line in tuned} == {"tune", "chat", "generate", "convert"}
