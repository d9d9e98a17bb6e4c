"""Conversations at the desk of the shop, drawn by a seed, and a checker of what is answered.

The facts are in desk_shop.py, as tables, and in desk_topics.txt, one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.desk_shop import AND_ON, HOURS, Topic, tables

TOPICS_FILE = Path(__file__).with_name("desk_topics.txt")
BLIND_FILE = Path(__file__).with_name("desk_blind.txt")
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "held-out.jsonl"
OPENINGS = ("Hello. ", "Hi, ", "Good morning. ", "Excuse me, ", "A question: ", "Please tell me: ")
GREETINGS = ("greeting", "thanks")  # that have no opening
OPENED, CARELESS, JOINED = 0.25, 0.15, 0.4  # fractions of the questions
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


class Held(NamedTuple):
    """A question that is not trained on, and what it is about."""

    question: str
    topic: Topic


def topics() -> list[Topic]:
    """All that the desk knows."""
    sections = TOPICS_FILE.read_text(encoding="utf-8").split("\n[")[1:]
    return [*tables(), *map(_read_topic, sections)]


def _read_topic(section: str) -> Topic:
    title, *lines = section.strip().splitlines()
    of: dict[str, list[str]] = {mark: [] for mark in "=!~-?"}
    for line in filter(None, lines):
        of[line[0]].append(line[2:])
    facts, train, held_out = (tuple(of[mark]) for mark in "!-?")
    (answer,) = of["="]
    return Topic(title.strip("]"), answer, facts, "|".join(of["~"]), train, held_out)


def training_conversations(seed: int = 0) -> list[list[dict[str, str]]]:
    """Conversations of one turn or two.  Each question stands in one of them, as it is or with an
    opening, or typed carelessly."""
    rng = np.random.default_rng(seed)
    known = topics()
    turns = [
        (_as_typed(question, rng, topic.name not in GREETINGS), topic.answer)
        for topic in known
        for question in topic.train
    ]
    turns = [turns[number] for number in rng.permutation(len(turns))]
    joined = int(JOINED * len(turns)) // 2 * 2
    conversations = [turns[n : n + 2] for n in range(0, joined, 2)]
    conversations += [[turn] for turn in turns[joined:]]
    answers = {topic.name: topic.answer for topic in known}
    first = {topic.name: topic.train[0] for topic in known}
    for number, day in enumerate(HOURS):
        earlier = f"hours {list(HOURS)[number - 1]}"
        for question in AND_ON:
            conversations.append(
                [
                    (first[earlier], answers[earlier]),
                    (question.format(day=day), answers[f"hours {day}"]),
                ]
            )
    return [as_messages(*conversation) for conversation in conversations]


def _as_typed(question: str, rng: np.random.Generator, opens: bool) -> str:
    if opens and rng.random() < OPENED:
        opening = OPENINGS[rng.integers(len(OPENINGS))]
        return opening + question
    if rng.random() < CARELESS:
        return question.lower().rstrip("?.!")
    return question


def as_messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def held_out_questions() -> list[Held]:
    """Questions on the same facts, in other words.  A table's rows take turns at its wordings."""
    held, rows = [], {"hours": 0, "delivery": 0, "staff": 0, "warranty": 0}
    for topic in topics():
        table = topic.name.split()[0]  # in a table: "hours Monday"
        if table not in rows:  # it stands by itself
            held += [Held(question, topic) for question in topic.held_out]
            continue
        held.append(Held(topic.held_out[rows[table] % len(topic.held_out)], topic))
        rows[table] += 1
    return held


def blind_questions() -> list[Held]:
    """A question for each topic, written by somebody who had not seen those that are trained on."""
    known = {topic.name: topic for topic in topics()}
    lines = BLIND_FILE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if not line.startswith("#"))
    return [Held(question, known[name]) for name, question in pairs]


def write(directory: Path, seed: int = 0) -> None:
    """Both files of conversations.  Raises ValueError where a held-out question is trained on."""
    conversations, held = training_conversations(seed), held_out_questions()
    check_apart(conversations, [*held, *blind_questions()])
    _write(directory / TRAIN_FILE, conversations)
    answered = (as_messages((question, topic.answer)) for question, topic in held)
    _write(directory / HELD_OUT_FILE, answered)


def _write(path: Path, conversations: Iterable[list[dict[str, str]]]) -> None:
    lines = (json.dumps({"messages": messages}) + "\n" for messages in conversations)
    path.write_text("".join(lines), encoding="utf-8")


def check_apart(conversations: list[list[dict[str, str]]], held: list[Held]) -> None:
    """Raises ValueError where a held-out question stands in one that is trained on, in whatever
    case and punctuation."""
    asked = [m["content"] for messages in conversations for m in messages if m["role"] == "user"]
    trained = [_words(question) for question in asked]
    for question, _ in held:
        if any(_words(question) in other for other in trained):
            raise ValueError(f"held out, and trained on: {question}")


def _words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


# --- what is right ---


def facts_right(topic: Topic, answer: str) -> int:
    """How many of the topic's facts an answer has; none where anything in it contradicts them.

    Contradictions are the topic's own, and any number that the right answer doesn't have.
    """
    allowed = NUMBER.findall(" ".join((topic.answer, *topic.facts)))
    if any(number not in allowed for number in NUMBER.findall(answer)):
        return 0
    if topic.wrong and has(topic.wrong, answer):
        return 0
    return sum(has(fact, answer) for fact in topic.facts)


def has(alternatives: str, answer: str) -> bool:
    """Whether one of the alternatives stands in the answer, as words and whole numbers."""
    answer = " ".join(answer.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,:–-]){re.escape(one)}(?!\w|[.,:–-]\d)", answer, re.IGNORECASE)
        for one in alternatives.split("|")
    )
