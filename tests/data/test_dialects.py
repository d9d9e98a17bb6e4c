"""Records as people have them: other keys, arrays, parts."""

from __future__ import annotations

import json

import pytest

from numgpt import formats
from numgpt.data.examples import ExampleEncoder, marked
from numgpt.data.records import COMPLETION, MESSAGES, PROMPT, read_records
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SYSTEM = {"role": "system", "content": "Be brief."}
DIALECTS = {
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        TALK,
        "conversations",
    ),
    "sharegpt with a system": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "user", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        },
        [SYSTEM, *TALK],
        "conversations",
    ),
    "sharegpt of messages": ({"conversations": TALK, "id": 4}, TALK, "conversations"),
    "alpaca": (
        {"instruction": "Say it", "input": "in French", "output": "Bonjour", "text": "Below …"},
        [
            {"role": "user", "content": "Say it\n\nin French"},
            {"role": "assistant", "content": "Bonjour"},
        ],
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
        {
            "messages": [
                {"role": "User", "content": "Hi"},
                {"role": "Assistant", "content": "Hello"},
            ]
        },
        TALK,
        "",
    ),
    "dolly": (
        {"instruction": "Who?", "context": "It was Ann.", "response": "Ann", "category": "qa"},
        [
            {"role": "user", "content": "Who?\n\nIt was Ann."},
            {"role": "assistant", "content": "Ann"},
        ],
        "instruction and response",
    ),
    "questions": ({"question": "Hi", "answer": "Hello"}, TALK, "question and answer"),
    "input and output": ({"input": "Hi", "output": "Hello"}, TALK, "input and output"),
    "parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
            ]
        },
        TALK,
        "",
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *TALK]},
        [SYSTEM, *TALK],
        "",
    ),
}


def write(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_read_as_messages(name, tmp_path):
    fields, messages, origin = DIALECTS[name]
    record = next(read_records([write(tmp_path / "a.jsonl", fields)]))
    assert record.kind == MESSAGES
    assert record.fields["messages"] == messages
    assert record.origin == origin


def test_tools_stay_beside_a_conversation(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    for fields in ({"conversations": TALK}, {"question": "Hi", "answer": "Hello"}):
        record = next(read_records([write(tmp_path / "a.jsonl", fields | {"tools": tools})]))
        assert record.fields["tools"] == tools


def test_our_own_keys_win(tmp_path):
    both = {"prompt": "Hi", "completion": " Hello", "instruction": "x", "output": "y"}
    judged = {"prompt": "Hi", "question": "x", "answer": "y"}
    for fields, kind in ((both, COMPLETION), (judged, PROMPT)):
        record = next(read_records([write(tmp_path / "a.jsonl", fields)]))
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
    with pytest.raises(ValueError, match=WRONG_ARRAYS[text]) as error:
        list(read_records([str(path)]))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


WRONG = {
    "speaker": (
        {"conversations": [{"from": "alien", "value": "x"}]},
        "line 1: a turn of the conversation is .*alien.*expected .*human | user",
    ),
    "nothing said": (
        {"conversations": [{"from": "human"}]},
        r"line 1: a turn of the conversation is \{'from': 'human'\}: expected",
    ),
    "number": (
        {"question": "6 · 7?", "answer": 42},
        "line 1: answer is 42, expected a text",
    ),
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


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_dialect_is_named(name, tmp_path):
    fields, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        next(read_records([write(tmp_path / "a.jsonl", fields)]))


@pytest.mark.parametrize("chat_format", ["chatml", "llama3", "plain"])
def test_an_answer_of_weight_0_is_not_learnt(chat_format, tmp_path):
    tokenizer = formats.load_tokenizer("shakespeare")
    tokenizer.chat_template = CHAT_TEMPLATES[chat_format]
    talk = [TALK[0], {"role": "assistant", "content": "Bad", "weight": 0}, *TALK]
    path = write(tmp_path / "a.jsonl", {"messages": talk}, {"messages": talk[:2]})
    encoder = ExampleEncoder(tokenizer)
    first, second = read_records([path])
    text = marked(encoder.encode(first), tokenizer)
    assert "Bad" in text[: text.index("«")]
    assert "Hello" in text[text.index("«") : text.index("»")]
    with pytest.raises(ValueError, match=r"line 2: nothing .* trained on: .*a weight other than 0"):
        encoder.encode(second)
