"""Rewards: what a completion is worth, so that a policy can learn from what it wrote itself.

By name, several of them with weights:

    exact              1 where the completion is the line's "answer", but for space around it
    number             1 where the last number in it is the one in "answer"
    regex:PATTERN      1 where the pattern (of Python) is found in it
    length:N           1 - |n - N| / N of n characters, 0 at least: has degrees, so teaches early
    json               1 where it is JSON
    FILE.py:FUNCTION   a function of prompt, completion and the line's fields -> a number, or None
                       where it does not apply
    DIRECTORY          the score of a reward model (numgpt tune reward)

A reward of None is left out: of a completion's rewards the others count, and one without any has no
part in the step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from numgpt import formats
from numgpt.data.examples import ExampleEncoder
from numgpt.data.records import PROMPT, Record
from numgpt.messages import one_line, shown
from numgpt.options import OptionError
from numgpt.training.tasks import TrainingError

GYM = "reasoning_gym"
LARGEST = 1e9
SCORED_AT_ONCE = 8  # texts, by a reward model
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
# prompt, completion, the line's fields -> a number, or None
Function = Callable[[Any, str, dict[str, Any]], Any]


class RewardError(TrainingError):
    """A reward could not be given: the run is saved, and stopped.  What a function has raised is
    its __cause__."""


class Completion(NamedTuple):
    """What is rewarded."""

    prompt: Any  # a text, or messages
    text: str
    example: dict[str, Any]  # the fields of its line, the prompt among them


class Reward:
    """What makes numbers of completions."""

    name: str
    needs: str | None = None  # a field of the line

    def __call__(self, completions: Sequence[Completion]) -> np.ndarray:
        """(B,) float64, NaN where it does not apply.  Raises RewardError."""
        return np.array([self.of(completion) for completion in completions], np.float64)

    def of(self, completion: Completion) -> float:
        """… of one of them, where each is looked at by itself."""
        raise NotImplementedError

    def check(self, prompt: Any) -> None:
        """Raises OptionError where it can't be asked about such prompts."""


class FunctionReward(Reward):
    """A function of prompt, completion and the line's fields."""

    def __init__(self, name: str, function: Function, needs: str | None = None):
        self.name, self.function, self.needs = name, function, needs

    def of(self, completion: Completion) -> float:
        if self.needs is not None and self.needs not in completion.example:
            return math.nan
        try:
            given = self.function(*copy.deepcopy(completion))  # which it may change
        except (Exception, SystemExit) as error:
            what = "the reward {0} raised {1}, for the completion {2}: {3}"
            kind, said = type(error).__name__, f"{one_line(error):.300}"
            raise RewardError(what, self.name, kind, shown(completion.text), said) from error
        if given is None:
            return math.nan
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
            if not isinstance(given, (str, bytes)) and abs(value := float(given)) <= LARGEST:
                return value
        what = (
            "the reward {0} is {1}, for the completion {2}: expected a number up to {3:g}, or None"
            " where it does not apply"
        )
        raise RewardError(what, self.name, shown(given), shown(completion.text), LARGEST)


class ModelReward(Reward):
    """The score that a reward model gives to prompt and completion, as its own tokenizer and chat
    format write them; what is too long is cut from the left."""

    def __init__(self, name: str, directory: str):
        """Raises OptionError for what is no reward model, or can't be loaded."""
        self.name, self.directory = name, directory
        try:
            if not formats.is_reward_model(directory):
                raise ValueError("it holds no reward model: numgpt tune reward makes one")
            self.model, tokenizer = formats.load(directory)
        except (ValueError, OSError) as error:
            raise OptionError("{reward}: {0}", one_line(error), reward=directory) from None
        self.encoder = ExampleEncoder(tokenizer)

    def __call__(self, completions: Sequence[Completion]) -> np.ndarray:
        texts, step = [self._ids(completion) for completion in completions], SCORED_AT_ONCE
        parts = (texts[first : first + step] for first in range(0, len(texts), step))
        return np.concatenate([*map(self.model.scores, parts)]).astype(np.float64)

    def check(self, prompt: Any) -> None:
        try:
            self.encoder.answered(prompt, "")
        except ValueError as error:
            what = "{reward} does not read such prompts: {0}"
            raise OptionError(what, one_line(error), reward=self.directory) from None

    def _ids(self, completion: Completion) -> list[int]:
        try:
            ids = self.encoder.answered(completion.prompt, completion.text)
        except ValueError as error:
            what = "the reward model {0} does not read the completion {1}: {2}"
            text = shown(completion.text)
            raise RewardError(what, self.name, text, one_line(error)) from None
        return ids[-self.model.context_length :]


class GymReward(Reward):
    """What a task of reasoning-gym makes of an answer: of what stands between <answer> tags, or of
    all that was said."""

    def __init__(self, task: str, size: int, seed: int):
        self.name, self.dataset = task, gym_dataset(task, size, seed)

    def of(self, completion: Completion) -> float:
        tagged = re.findall(r"<answer>(.*?)</answer>", completion.text, re.DOTALL)
        answer = (tagged[-1] if tagged else completion.text).strip()
        entry = self.dataset[completion.example["index"]]
        try:
            return float(self.dataset.score_answer(answer, entry))
        except Exception:  # some checkers raise where an answer is of another form
            return 0.0


def gym_dataset(task: str, size: int, seed: int) -> Any:
    """The questions of reasoning_gym:NAME, or with options of its generator, of
    reasoning_gym:NAME,option=value,….  Raises OptionError where there is no such task or option, or
    the package is missing."""
    package, _, named = task.partition(":")
    name, *given = named.split(",")
    pairs = [option.partition("=") for option in given]
    if any(option in ("size", "seed") for option, _, _ in pairs):
        raise OptionError("{task}: give {task_size:name} and {seed:name} instead", task=task)
    if package != GYM or not name or not all(value for _, _, value in pairs):
        what = f"{{task}}: expected {GYM}:NAME or {GYM}:NAME,option=value, such as {GYM}:chain_sum"
        raise OptionError(what, task=task)
    try:
        import reasoning_gym
    except ImportError as error:
        raise OptionError(
            f"{{task}} needs the package reasoning-gym: pip install 'numgpt[gym]' ({error})",
            task=task,
        ) from None
    try:
        options = {option: _value(value) for option, _, value in pairs}
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except Exception as error:  # whatever it raises of an option
        raise OptionError("{task} is refused: {0}", one_line(error), task=task) from None


def gym_records(task: str, size: int, seed: int) -> Iterator[Record]:
    """The questions of a task, each once.  Raises OptionError as `gym_dataset`."""
    seen = set[str]()  # else one that is held out could be trained on
    dataset = gym_dataset(task, size, seed)
    for index in range(size):
        try:
            entry = dataset[index]
        except Exception as error:  # whatever its generator raises of an option
            raise OptionError("{task} is refused: {0}", one_line(error), task=task) from None
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        prompt = [{"role": "user", "content": entry["question"]}]
        fields = {"prompt": prompt, "answer": str(entry["answer"]), "index": index}
        yield Record(task, index + 1, PROMPT, fields, "question")


def _value(text: str) -> Any:
    """A number, truth or list, where it is one in JSON; else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def named_reward(name: str) -> Reward:
    """The reward of a name.  Raises OptionError for one that there is not."""
    kind, colon, value = name.partition(":")
    if kind in BUILT_IN and not colon:
        return FunctionReward(name, *BUILT_IN[kind])
    if kind == "regex" and value:
        try:
            pattern = re.compile(value, re.DOTALL)
        except re.error as error:
            raise OptionError("{reward}: no regular expression ({0})", error, reward=name) from None
        return FunctionReward(name, lambda prompt, text, example: pattern.search(text) is not None)
    if kind == "length" and value.isdecimal() and int(value):
        wanted = int(value)
        return FunctionReward(
            name, lambda prompt, text, example: max(0.0, 1 - abs(len(text) - wanted) / wanted)
        )
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return FunctionReward(function, _imported(path, function, name))
    if os.path.isdir(name):
        return ModelReward(Path(name).resolve().name, name)
    raise OptionError(
        "{reward}: there is no such reward: expected exact, number, json, regex:PATTERN, length:N,"
        " FILE.py:FUNCTION or the directory of a reward model",
        reward=name,
    )


def _imported(path: str, name: str, reward: str) -> Function:
    if not os.path.isfile(path):
        raise OptionError("{reward}: there is no such file", reward=reward)
    try:
        module = _module(path, os.stat(path).st_mtime_ns)
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        place = f", in line {frames[-1].lineno}" if frames else ""
        what = "{reward} fails to import ({0}: {1}{2})"
        kind, said = type(error).__name__, one_line(error)
        raise OptionError(what, kind, said, place, reward=reward) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError("{reward}: the file has no function {0}", name, reward=reward)
    return function  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=8)
def _module(path: str, changed: int) -> ModuleType:
    """A file as a module of its own; `changed` is when it was."""
    name = f"numgpt reward {os.path.abspath(path)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # of a .py file
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, directory := os.path.dirname(os.path.abspath(path)))  # as Python itself does
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(directory)
    return module


# --- the built-in ones ---


def _exact(prompt: Any, text: str, example: dict[str, Any]) -> bool:
    return text.strip() == str(example["answer"]).strip()


def _number(prompt: Any, text: str, example: dict[str, Any]) -> bool | None:
    expected, said = _last_number(str(example["answer"])), _last_number(text)
    return None if expected is None else said == expected


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _json(prompt: Any, text: str, example: dict[str, Any]) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# By name, and the field that a line needs.
BUILT_IN: dict[str, tuple[Function, str | None]] = {
    "exact": (_exact, "answer"),
    "number": (_number, "answer"),
    "json": (_json, None),
}
