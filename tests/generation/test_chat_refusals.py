"""What a chat refuses, in one line, and then is as it was."""

import json

import pytest
from generation.chats import MOST, characters, greedy, random_model, said, setup, state
from support import refused

from numgpt import GPT, Chat


@pytest.fixture
def chat():
    model, tokenizer = setup("gpt_chatml")
    return greedy(model, tokenizer, system="s")


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD_FILES = {
    "{": "not JSON",
    "5": "list",
    '"Hi"': "list",
    '{"role": "user"}': "list",
    "[" * 99_999: "not JSON",
    "\udcff": "not JSON",
    json.dumps(["ab"]): "message 0",
    json.dumps([5]): "message 0",
    json.dumps([USER]): "ends with a question",
    json.dumps([ASSISTANT]): "message 0 is the assistant's",
    json.dumps([USER, USER]): "message 1 is the user's",
    json.dumps([{"role": "system", "content": "s"}, USER, USER]): "message 2 is the user's",
    json.dumps([USER, {"role": "assistant"}]): "message 1 has no text",
    json.dumps([USER, {"role": "assistant", "ids": [1]}]): "message 1 has no text",
    json.dumps([{"role": "user", "content": "\ud800"}, ASSISTANT]): "surrogate",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=[*map(str, range(len(BAD_FILES)))])
def test_bad_files_are_refused_in_one_line(chat, tmp_path, text):
    said(chat, "Hi")
    before = state(chat)
    path = tmp_path / "talk.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    said_of_it = refused(lambda: chat.load(path), BAD_FILES[text], path)
    assert said_of_it.startswith(f"{path} holds no conversation: ")
    assert state(chat) == before


BAD_OPTIONS = {
    "max_new_tokens": (0, -1, None, 2.5, "many"),
    "temperature": (0, "hot"),
    "top_p": (2,),
    "seed": (-1,),
    "num_return_sequences": (2,),
    "stop_strings": ([""], ""),
    "eos_token_id": (999,),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_checked_before_anything_changes(chat, name):
    said(chat, "Hi")
    heard = chat.ask("Go on")
    next(heard)
    before, cached = state(chat), list(chat._cached_ids)
    for value in BAD_OPTIONS[name]:
        if name == "stop_strings" and value == "":
            continue  # no stop string
        for refuse in (
            lambda: chat.ask("x", **{name: value}),  # noqa: B023
            lambda: chat.retry(**{name: value}),  # noqa: B023
            lambda: Chat(chat.model, chat.tokenizer, **{name: value}),  # noqa: B023
        ):
            refused(refuse, name)
    assert state(chat) == before
    assert chat._cached_ids == cached
    assert "".join(heard) != ""  # that answer goes on
    with pytest.raises(TypeError, match="penalty_alpha"):
        chat.ask("x", penalty_alpha=2)


@pytest.mark.parametrize("text", ["", " \n", None, 5, b"Hi", ["Hi"], "\ud800"])
def test_a_message_is_a_text(chat, text):
    before = state(chat)
    with pytest.raises(ValueError, match=r"message|surrogate"):
        chat.ask(text)
    assert state(chat) == before


@pytest.mark.parametrize("system", [5, "\udc80", ["x"]])
def test_a_system_prompt_is_a_text(chat, system):
    with pytest.raises(ValueError, match=r"no text|surrogate"):
        Chat(chat.model, chat.tokenizer, system=system)


def test_a_character_that_the_model_lacks_is_named():
    tokenizer = characters()
    chat = greedy(random_model(GPT, tokenizer.vocab_size), tokenizer)
    said(chat, "Hi")
    with pytest.raises(ValueError, match=r"U\+1F600"):
        chat.ask("Hi \U0001f600")
    assert len(chat.messages) == 2
    assert said(chat, "a\nUser: b") != ""  # what breaks the marker is a character that it has


def test_a_configs_end_token_beyond_the_vocabulary_ends_nothing(chat):
    expected = said(chat, "Hi")
    chat.model.config.eos_token_id = 50256
    assert "".join(chat.retry()) == expected
    chat.model.config.eos_token_id = chat.tokenizer.encode(expected[2])[0]
    assert "".join(chat.retry()) == expected[: expected.index(expected[2])]
    assert len(expected) == MOST
