"""JSON lines: found, read, told apart; what is wrong is named by file and line."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys

import pytest
from support import refused

from numgpt.data.records import (
    COMPLETION,
    MESSAGES,
    PREFERENCE,
    PROMPT,
    TEXT,
    find_record_files,
    read_records,
)

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
KINDS = {
    TEXT: {"text": "a text"},
    COMPLETION: {"prompt": "2 + 2 =", "completion": " 4"},
    MESSAGES: {"messages": TALK},
    PREFERENCE: {"chosen": "yes", "rejected": "no"},
    PROMPT: {"prompt": "2 + 2 =", "answer": 4},
}


def write(path, *values):
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(lines, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_their_keys(kind, tmp_path):
    path = write(tmp_path / "a.jsonl", KINDS[kind], KINDS[kind] | {"prompt": "other", "source": 5})
    first, second = read_records([path])
    assert first.kind == second.kind == kind
    assert first.fields == KINDS[kind]
    assert (first.line, second.line) == (1, 2)
    assert second.place == f"{path}, line 2"


def test_prompts_and_completions_may_be_messages(tmp_path):
    fields = {"prompt": TALK[:1], "completion": TALK[1:]}
    assert next(read_records([write(tmp_path / "a.jsonl", fields)])).kind == COMPLETION


def test_files_are_found(tmp_path, monkeypatch):
    names = ["b.jsonl", "a.ndjson", "deeper/c.json", "d.jsonl.gz", "notes.txt", ".hidden.jsonl"]
    (tmp_path / "deeper").mkdir()
    for name in names:
        (tmp_path / name).write_text('{"text": "x"}\n')
    found = find_record_files(str(tmp_path))
    expected = ["a.ndjson", "b.jsonl", "d.jsonl.gz", "deeper/c.json"]
    assert found == [str(tmp_path / name) for name in expected]
    (tmp_path / "run").mkdir()  # of a run
    (tmp_path / ".staged").mkdir()
    for name in ("run/checkpoint.safetensors", "run/log.jsonl", ".staged/a.jsonl"):
        (tmp_path / name).write_text("{}")
    assert find_record_files(str(tmp_path)) == found
    assert find_record_files(str(tmp_path / "**/*.jsonl")) == [str(tmp_path / "b.jsonl")]
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="can be read only once: give it as standard input"):
        find_record_files(str(tmp_path / "fifo"))
    assert find_record_files(str(tmp_path / "*.txt")) == [str(tmp_path / "notes.txt")]
    both = [str(tmp_path / "b.jsonl"), "-"]
    assert find_record_files(both) == both
    for absent in ("absent*", str(tmp_path / "empty"), ""):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match="no JSON lines in it"):
            find_record_files(absent)


def test_gzip_standard_input_and_line_ends(tmp_path, monkeypatch):
    text = '\ufeff{"text": "ä"}\r\n\r\n{"text": "b\u2028c"}'
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(text.encode())
    (tmp_path / "unnamed").write_bytes((tmp_path / "a.jsonl.gz").read_bytes())
    for name in ("a.jsonl", "a.jsonl.gz", "unnamed"):
        records = list(read_records([str(tmp_path / name)]))
        assert [record.fields["text"] for record in records] == ["ä", "b\u2028c"]
        assert [record.line for record in records] == [1, 3]
    with open(tmp_path / "a.jsonl", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert [record.fields["text"] for record in read_records(["-"])] == ["ä", "b\u2028c"]


def second(line: bytes) -> bytes:
    return b'{"text": "fine"}\n' + line + b"\n"


WHOLE = gzip.compress(b'{"text": "a"}\n' * 100)
WRONG = [
    (second(b"{"), "line 2 is not JSON .*each line is one whole"),
    (second(b'["a"]'), r"line 2 is \['a'\]: expected one JSON object"),
    (second(b"\xff\xfe"), "line 2 is not UTF-8 text .byte 0xFF.: convert"),
    (second(b"[" * 100_000), "line 2 is not JSON"),
    (
        second(b'{"question": "?"}'),
        r"line 2 has the keys \['question'\]: expected text; prompt and",
    ),
    (
        second(b'{"completion": "4"}'),
        "line 2 lacks 'prompt', which goes with prompt and completion",
    ),
    (second(b'{"chosen": "4"}'), "line 2 lacks 'rejected'"),
    (second(b'{"text": 4}'), "line 2: text is 4, expected a string"),
    (second(b'{"text": null}'), "line 2: text is None"),
    (second(b'{"messages": "Hi"}'), "line 2: messages is 'Hi', expected a list of messages"),
    (second(b'{"messages": []}'), "line 2: messages is an empty list"),
    (
        second(b'{"messages": [{"role": "bot", "content": ""}]}'),
        "line 2: messages holds .*expected messages",
    ),
    (
        second(b'{"messages": [{"role": "user"}]}'),
        "line 2: a message in messages has None as its content",
    ),
    (
        second(b'{"prompt": 1, "completion": "4"}'),
        "line 2: prompt is 1, expected a string or messages",
    ),
    (second(b'{"prompt": "1"}'), "line 2 has prompt without completion, the lines before it text"),
    (second(b'{"text": }'), r"line 2 is not JSON \(Expecting value at column 10\)"),
    (b'{"text": "fine"},\n', "a comma or more stands behind the object at column 17"),
    (second(b'{"text": "fine"'), r"line 2 is not JSON \(it ends before .* is closed\)"),
    (b'{\n  "text": "fine"\n}\n', r"line 1 is not JSON .*: each line is one whole"),
    (b"\n \n", "no examples in it"),
    (b"PAR1\x15\x04", "is a Parquet file: make JSON lines of it first"),
    (b"no gzip", "is damaged, or no gzip file", ".gz"),
    (WHOLE[:-9], "is damaged, or no gzip file", ".gz"),
    (WHOLE[:20], "is damaged, or no gzip file", ".gz"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=[message for _, message, *_ in WRONG])
def test_what_is_wrong_is_named(wrong, tmp_path):
    content, message, suffix = (*wrong, ".jsonl")[:3]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(lambda: list(read_records([str(path)])), message, path)
