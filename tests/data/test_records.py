"""JSON lines with the keys that people have: found, read, told apart; what is wrong is named."""

import gzip
import io
import json
import os
import sys

import pytest
from support import refused, talk, write_lines

from numgpt import formats
from numgpt.data.examples import ExampleEncoder, marked
from numgpt.data.records import (
    COMPLETION,
    MESSAGES,
    PREFERENCE,
    PROMPT,
    TEXT,
    find_record_files,
    read_records,
)
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

TALK = talk("Hi", "Hello")
SYSTEM = {"role": "system", "content": "Be brief."}
KINDS = {
    TEXT: {"text": "a text"},
    COMPLETION: {"prompt": "2 + 2 =", "completion": " 4"},
    MESSAGES: {"messages": TALK},
    PREFERENCE: {"chosen": "yes", "rejected": "no"},
    PROMPT: {"prompt": "2 + 2 =", "answer": 4},
}


def first(tmp_path, fields):
    return next(read_records([write_lines(tmp_path / "a.jsonl", fields)]))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_their_keys(kind, tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", KINDS[kind], KINDS[kind] | {"prompt": "other", "source": 5}
    )
    one, other = read_records([path])
    assert one.kind == other.kind == kind
    assert one.fields == KINDS[kind]
    assert (one.line, other.line) == (1, 2)
    assert other.place == f"{path}, line 2"


def test_prompts_and_completions_may_be_messages(tmp_path):
    fields = {"prompt": TALK[:1], "completion": TALK[1:]}
    assert first(tmp_path, fields).kind == COMPLETION


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


# What is wrong with a line, and what is said of it behind "line 2".
WRONG_LINES = [
    (b"{", " is not JSON .*each line is one whole"),
    (b'["a"]', r" is \['a'\]: expected one JSON object"),
    (b"\xff\xfe", " is not UTF-8 text .byte 0xFF.: convert"),
    (b"[" * 100_000, " is not JSON"),
    (b'{"question": "?"}', r" has the keys \['question'\]: expected text; prompt and"),
    (b'{"completion": "4"}', " lacks 'prompt', which goes with prompt and completion"),
    (b'{"chosen": "4"}', " lacks 'rejected'"),
    (b'{"text": 4}', ": text is 4, expected a string"),
    (b'{"text": null}', ": text is None"),
    (b'{"messages": "Hi"}', ": messages is 'Hi', expected a list of messages"),
    (b'{"messages": []}', ": messages is an empty list"),
    (b'{"messages": [{"role": "bot", "content": ""}]}', ": messages holds .*expected messages"),
    (b'{"messages": [{"role": "user"}]}', ": a message in messages has None as its content"),
    (b'{"prompt": 1, "completion": "4"}', ": prompt is 1, expected a string or messages"),
    (b'{"prompt": "1"}', " has prompt without completion, the lines before it text"),
    (b'{"text": }', r" is not JSON \(Expecting value at column 10\)"),
    (b'{"text": "fine"', r" is not JSON \(it ends before .* is closed\)"),
]
WHOLE = gzip.compress(b'{"text": "a"}\n' * 100)
WRONG = [
    *[(b'{"text": "fine"}\n%b\n' % line, f"line 2{message}") for line, message in WRONG_LINES],
    (b'{"text": "fine"},\n', "a comma or more stands behind the object at column 17"),
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


# --- other keys, arrays, parts ---


SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
PARTS = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
DIALECTS = {
    "sharegpt": ({"conversations": SHAREGPT}, TALK, "conversations"),
    "sharegpt with a system": (
        {"system": "Be brief.", "conversations": [SHAREGPT[0] | {"from": "user"}, SHAREGPT[1]]},
        [SYSTEM, *TALK],
        "conversations",
    ),
    "sharegpt of messages": ({"conversations": TALK, "id": 4}, TALK, "conversations"),
    "alpaca": (
        {"instruction": "Say it", "input": "in French", "output": "Bonjour", "text": "Below …"},
        talk("Say it\n\nin French", "Bonjour"),
        "instruction and output",
    ),
    "alpaca without an input": (
        {"instruction": "Hi", "input": "", "output": "Hello", "system": "Be brief."},
        [SYSTEM, *TALK],
        "instruction and output",
    ),
    "alpaca with a history": (
        {"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]]},
        TALK * 2,
        "instruction and output",
    ),
    "capitals": ({"id": "17", "Question": "Hi", "Answer": "Hello"}, TALK, "Question and Answer"),
    "letters": ({"q": "Hi", "a": "Hello", "messages": None}, TALK, "q and a"),
    "conversation": ({"conversation": TALK}, TALK, "conversation"),
    "an empty instruction": (
        {"instruction": "", "input": "Hi", "output": "Hello"},
        TALK,
        "instruction and output",
    ),
    "roles in capitals": (
        {"messages": [TALK[0] | {"role": "User"}, TALK[1] | {"role": "Assistant"}]},
        TALK,
        "",
    ),
    "dolly": (
        {"instruction": "Who?", "context": "It was Ann.", "response": "Ann", "category": "qa"},
        talk("Who?\n\nIt was Ann.", "Ann"),
        "instruction and response",
    ),
    "questions": ({"question": "Hi", "answer": "Hello"}, TALK, "question and answer"),
    "input and output": ({"input": "Hi", "output": "Hello"}, TALK, "input and output"),
    "parts": ({"messages": talk(PARTS, [PARTS[0] | {"text": "Hello"}])}, TALK, ""),
    "developer": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *TALK]},
        [SYSTEM, *TALK],
        "",
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_read_as_messages(name, tmp_path):
    fields, messages, origin = DIALECTS[name]
    record = first(tmp_path, fields)
    assert record.kind == MESSAGES
    assert record.fields["messages"] == messages
    assert record.origin == origin


def test_tools_stay_beside_a_conversation(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    for fields in ({"conversations": TALK}, {"question": "Hi", "answer": "Hello"}):
        record = first(tmp_path, fields | {"tools": tools})
        assert record.fields["tools"] == tools


def test_our_own_keys_win(tmp_path):
    both = {"prompt": "Hi", "completion": " Hello", "instruction": "x", "output": "y"}
    judged = {"prompt": "Hi", "question": "x", "answer": "y"}
    for fields, kind in ((both, COMPLETION), (judged, PROMPT)):
        record = first(tmp_path, fields)
        assert (record.kind, record.origin, record.fields) == (kind, "", fields)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_may_be_one_array(indent, tmp_path):
    path = tmp_path / "a.json"
    values = [{"text": "a"}, {"text": "b]"}]
    path.write_text("\ufeff \n" * (indent or 0) + json.dumps(values, indent=indent) + "\n")
    found = list(read_records([str(path)]))
    assert [record.fields for record in found] == values
    assert found[1].place == f"{path}, item 2"
    path.write_text("[ ]")
    with pytest.raises(ValueError, match="no examples in it"):
        list(read_records([str(path)]))


WRONG_ARRAYS = {
    '[{"text": "a"}\n {"text": "b"}]': r"after item 1 of its array stands '\{.*expected , or",
    '[{"text": "a"},\n]': "item 2 of its array is not JSON .Expecting value at line 2, column 1",
    '[{"text": "a"}, {"text": "b"}': "after item 2 of its array stands '': expected , or, at its",
    '[{"text": "a"}, {"text": "b': "item 2 of its array is not JSON .it ends before a quote, a br",
    '[{"text": "a"}, "b"]': "item 2 is 'b': expected one JSON object",
    '[{"text": "a"}, {"x": 1}]': r"item 2 has the keys \['x'\]",
    "[" * 100_000: "item 1 of its array is not JSON",
    "[": "item 1 of its array is not JSON .it ends before a quote, a bracket or a brace is closed",
}


@pytest.mark.parametrize("text", WRONG_ARRAYS, ids=lambda text: text[:30])
def test_a_wrong_array_is_named(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    refused(lambda: list(read_records([str(path)])), WRONG_ARRAYS[text], path)


WRONG_DIALECTS = {
    "speaker": (
        {"conversations": [{"from": "alien", "value": "x"}]},
        "line 1: a turn of the conversation is .*alien.*expected .*human | user",
    ),
    "nothing said": (
        {"conversations": [{"from": "human"}]},
        r"line 1: a turn of the conversation is \{'from': 'human'\}: expected",
    ),
    "number": ({"question": "6 · 7?", "answer": 42}, "line 1: answer is 42, expected a text"),
    "text of JSON": (
        {"messages": json.dumps(TALK)},
        "line 1: messages is a text of JSON: expected a list of messages",
    ),
    "roles without a key": (TALK[0], r"line 1 has the keys \['role', 'content'\]: expected text"),
    "other keys": ({"frage": "Hi"}, r"line 1 has the keys \['frage'\]: expected text; prompt and"),
    "history": (
        {"instruction": "x", "output": "y", "history": ["z"]},
        "line 1: history holds 'z', expected .question, answer. pairs",
    ),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        r'image_url.* as its content: expected a string, or parts \{"type": "text"',
    ),
    "weight": (
        {"messages": [TALK[0], TALK[1] | {"weight": 0.5}]},
        "the weight 0.5: expected 1, or 0 for an answer that is not trained on",
    ),
}


@pytest.mark.parametrize("name", WRONG_DIALECTS)
def test_what_is_wrong_with_a_dialect_is_named(name, tmp_path):
    fields, message = WRONG_DIALECTS[name]
    with pytest.raises(ValueError, match=message):
        first(tmp_path, fields)


@pytest.mark.parametrize("chat_format", ["chatml", "llama3", "plain"])
def test_an_answer_of_weight_0_is_not_learnt(chat_format, tmp_path):
    tokenizer = formats.load_tokenizer("shakespeare")
    tokenizer.chat_template = CHAT_TEMPLATES[chat_format]
    said = [TALK[0], {"role": "assistant", "content": "Bad", "weight": 0}, *TALK]
    path = write_lines(tmp_path / "a.jsonl", {"messages": said}, {"messages": said[:2]})
    encoder = ExampleEncoder(tokenizer)
    first, second = read_records([path])
    text = marked(encoder.encode(first), tokenizer)
    assert "Bad" in text[: text.index("«")]
    assert "Hello" in text[text.index("«") : text.index("»")]
    with pytest.raises(ValueError, match=r"line 2: nothing .* trained on: .*a weight other than 0"):
        encoder.encode(second)
