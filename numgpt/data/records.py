"""Examples in files of JSON lines: found, read one at a time, and told apart by their keys.

    {"text": …}                                        text
    {"prompt": …, "completion": …}                     texts, or lists of messages
    {"messages": [{"role": …, "content": …}, …]}       a conversation
    {"prompt": …, "completion": …, "label": true}      a completion that was judged, good or not
    {"prompt": …, "chosen": …, "rejected": …}          a preference; the prompt may be missing
    {"prompt": …, …}                                   a prompt, with fields that judge an answer

The keys are those that trl's data sets have; what others call them is in dialects.py. A file may
also be one array of such objects.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from numgpt.data.dialects import as_messages
from numgpt.data.finding import STANDARD_INPUT, find_files
from numgpt.messages import shown, wrong_json
from numgpt.reading import naming

ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
LONGEST_LINE, LONGEST_ARRAY = 1 << 26, 1 << 32  # bytes
GZIP = b"\x1f\x8b"  # begins such a file
ROLES = ("system", "user", "assistant", "tool")
TEXT, COMPLETION, MESSAGES = "text", "prompt and completion", "messages"
PREFERENCE, PROMPT = "prompt, chosen and rejected", "prompt without completion"
JUDGED = "prompt, completion and label"
# The first of these keys that a record has -> what it is, and the keys that it then needs.
REQUIRED: dict[str, tuple[str, tuple[str, ...]]] = {
    "chosen": (PREFERENCE, ("chosen", "rejected")),
    "rejected": (PREFERENCE, ("chosen", "rejected")),
    "messages": (MESSAGES, ("messages",)),
    "completion": (COMPLETION, ("prompt", "completion")),
    "text": (TEXT, ("text",)),
    "prompt": (PROMPT, ("prompt",)),
}


@dataclass(frozen=True)
class Record:
    """One line of a file, or one item of its array."""

    path: str
    line: int  # or item, from 1
    kind: str  # TEXT, COMPLETION, …
    fields: dict[str, Any]
    unit: str = "line"
    origin: str = ""  # the keys that it had, where they are others

    @property
    def place(self) -> str:
        return f"{self.path}, {self.unit} {self.line}"


def find_record_files(data: str | list[str]) -> list[str]:
    """The files that a path, a directory (with all JSON lines below it), a glob or "-" names, in
    order; or those of several.  Raises FileNotFoundError where there is nothing."""
    if isinstance(data, list):
        return [file for one in data for file in find_record_files(one)]
    if data == STANDARD_INPUT:
        return [data]

    def unwanted(path: Path) -> str | None:
        named = not os.path.isdir(data)  # by a glob, whatever its ending
        return None if named or path.name.lower().endswith(ENDINGS) else "without JSON lines"

    return find_files(
        data,
        unwanted,
        f"give it as standard input ({STANDARD_INPUT}), or write it to a file first",
        f"no JSON lines in it ({', '.join(ENDINGS[:3])}, or with .gz)",
    )


def read_records(files: list[str], kind: str | None = None) -> Iterator[Record]:
    """The records of several files, all of one kind: that of the first, or where one is given, that
    of the examples these are held out from.

    Raises ValueError naming file, line and what is wrong with it: no UTF-8, no JSON object, keys
    that are none of the kinds', another kind than the lines before.
    """
    first: str | None = None
    for path in files:
        for unit, number, found in _objects(path):
            place = f"{path}, {unit} {number}"
            fields, origin = as_messages(found, place)
            record = Record(path, number, _kind(fields, place), fields, unit, origin)
            if kind is not None and record.kind != kind:
                raise ValueError(
                    f"{record.place} has {record.kind}, the examples to train on {kind}: held-out"
                    " examples are of the same kind"
                )
            if first is not None and record.kind != first:
                raise ValueError(
                    f"{record.place} has {record.kind}, the lines before it {first}: put them into"
                    " files of their own"
                )
            first = record.kind
            yield record
    if first is None:
        raise ValueError(f"{', '.join(files):.200}: no examples in it")


def _objects(path: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """What a file holds: "line" or "item", its number, and the object."""
    with naming(path), closing(_open(path)) as file:
        number, empty = 0, True
        while line := _read(file, path, LONGEST_LINE, line=True):
            number += 1
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path}, line {number} is longer than {LONGEST_LINE >> 20} MB")
            text = _decoded(line, path, f"line {number}", first=number == 1)
            if not text.strip():
                continue
            if empty and text.lstrip().startswith("["):
                rest = _read(file, path, LONGEST_ARRAY)
                if len(rest) > LONGEST_ARRAY:
                    raise ValueError(
                        f"{path} is an array of more than {LONGEST_ARRAY >> 30} GB: make it lines"
                    )
                text = text.lstrip() + _decoded(rest, path, "its array")
                return (yield from _items(text, path))
            empty = False
            try:
                value = json.loads(text.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON ({wrong_json(error)}): each line is one"
                    " whole JSON object"
                ) from None
            yield "line", number, _object(value, f"{path}, line {number}")


def _items(text: str, path: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """… what an array holds, the whole of a file."""
    decoder, place, number = json.JSONDecoder(), 0, 0
    while True:
        place = _space_ends(text, place + 1)  # after [ or ,
        if number == 0 and text.startswith("]", place):
            break
        number += 1
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            what = wrong_json(error, in_line=True)
            raise ValueError(f"{path}: item {number} of its array is not JSON ({what})") from None
        yield "item", number, _object(value, f"{path}, item {number}")
        place = _space_ends(text, place)
        if not text.startswith(",", place):
            break
    if (after := text[place:].strip()) != "]":
        raise ValueError(
            f"{path}: after item {number} of its array stands {shown(after)}: expected , or, at its"
            " end, ]"
        )


def _space_ends(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    assert space is not None  # which may be empty
    return space.end()


_SPACE = re.compile(r"[ \t\r\n]*")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {shown(value)}: expected one JSON object")
    return value


def _decoded(data: bytes, path: str, where: str, first: bool = False) -> str:
    if first and data.startswith(b"PAR1"):
        raise ValueError(f"{path} is a Parquet file: make JSON lines of it first")
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, {where} is not UTF-8 text (byte 0x{data[error.start]:02X}): convert it first,"
            " for instance with iconv"
        ) from None


def _open(path: str) -> BinaryIO:
    if path == STANDARD_INPUT:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    with open(path, "rb") as file:
        is_gzip = path.endswith(".gz") or file.read(len(GZIP)) == GZIP
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip else open(path, "rb")


def _read(file: BinaryIO, path: str, most: int, line: bool = False) -> bytes:
    """The rest of a file, or of its line, up to one byte more than `most`."""
    try:
        return file.readline(most + 1) if line else file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{path} is damaged, or no gzip file: copy or download it again") from None


def _kind(fields: dict[str, Any], place: str) -> str:
    """What a record is, by its keys.  Raises ValueError for one that is none, or is incomplete."""
    key = next((key for key in REQUIRED if key in fields), None)
    if key is None:
        raise ValueError(
            f"{place} has the keys {shown(list(fields))}: expected {TEXT}; {COMPLETION};"
            f" {MESSAGES}; {JUDGED}; {PREFERENCE}; or {PROMPT}"
        )
    kind, required = REQUIRED[key]
    if kind == COMPLETION and isinstance(fields.get("label"), bool):
        kind = JUDGED
    for name in required:
        if name not in fields:
            raise ValueError(f"{place} lacks {name!r}, which goes with {kind}")
    for name in dict.fromkeys(("prompt", *required)):
        if name in fields:
            _check(name, fields[name], place)
    return kind


def _check(name: str, value: Any, place: str) -> None:
    """Raises ValueError for what is neither text nor messages, or not what it must be."""
    listed, text = name == "messages", name == "text"
    if isinstance(value, str) and not listed:
        return
    if text or not isinstance(value, list):
        if listed and isinstance(value, str) and value.lstrip().startswith("["):
            raise ValueError(f"{place}: {name} is a text of JSON: expected a list of messages")
        expected = (
            "a list of messages" if listed else "a string" if text else "a string or messages"
        )
        raise ValueError(f"{place}: {name} is {shown(value)}, expected {expected}")
    if not value:
        raise ValueError(f"{place}: {name} is an empty list, expected messages")
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise ValueError(
                f"{place}: {name} holds {shown(message)}: expected messages"
                f' {{"role": {" | ".join(ROLES)}, "content": …}}'
            )
        if message.get("content") is None and message.get("tool_calls"):
            continue  # an answer that calls functions and says nothing
        if not isinstance(message.get("content"), str):
            raise ValueError(
                f"{place}: a message in {name} has {shown(message.get('content'))} as its content:"
                ' expected a string, or parts {"type": "text", "text": …}'
            )
        if (weight := message.get("weight")) not in (None, 0, 1):
            raise ValueError(
                f"{place}: a message in {name} has the weight {shown(weight)}: expected 1, or 0 for"
                " an answer that is not trained on"
            )
