"""What ends an answer: stop strings, never shown however the tokens cut them, and loops, but no
mere repetition."""

import itertools
import random
from collections.abc import Sequence
from unittest import mock

import pytest
from generation.chats import SETUPS, Reference, greedy, random_model, said, setup
from hypothesis import example, given
from hypothesis import strategies as st

from numgpt import GPT
from numgpt.generation import chat as chat_module
from numgpt.generation.endings import LOOP_TIMES, LOOP_TOKENS, goes_in_circles
from numgpt.tokenizer import BaseTokenizer

STOP = "\nUser:"


class Pieces(BaseTokenizer):
    """A tokenizer of bytes, and of pieces of any length."""

    def __init__(self, pieces: Sequence[str]):
        super().__init__()
        self.pieces = list(pieces)

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.pieces)

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    def token_to_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < 256 else self.pieces[id - 256].encode()


def chat_that_says(pieces: Sequence[str]):
    """A chat whose model says these pieces, a token each."""
    tokenizer = Pieces(pieces)
    chat = greedy(random_model(GPT, tokenizer.vocab_size), tokenizer)

    def tokens(*_, **__):
        return iter(range(256, tokenizer.vocab_size))

    return chat, mock.patch.object(chat_module, "stream", tokens)


def cut(text: str, places: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(places)] or [""]


PARTS = [STOP, "\nUse", "\n", "User:", "\n\n", "\nUser", "r:", " ", "Yes", ":", "\u00e9", "\nU"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=20)


@given(TEXTS, CUTS)
@example(" Yes.\nUser: No.\nUser:", range(60))
@example("\nUser:", [])
@example("\n\nUser:\nUser", [3])
@example("Yes\nUse", range(60))  # no stop string after all
def test_what_is_shown_ends_before_the_stop_string(text, places):
    expected = text.split(STOP)[0].removeprefix(" ")
    chat, tokens = chat_that_says(cut(text, places))
    with tokens:
        shown = list(chat.ask("Hi"))
    assert "".join(shown) == expected
    assert all(shown)  # no empty pieces
    assert chat.messages[-1] == {"role": "assistant", "content": expected}
    prompt = chat.tokenizer.decode(chat.template.ids(chat._turns))
    # Where nothing at all was said, the format's own space stands there.
    assert prompt == f"User: Hi\nAssistant:{text.split(STOP)[0] or ' '}\n"


@given(TEXTS, CUTS, st.integers(0, 5))
def test_whoever_leaves_early_has_heard_what_is_kept(text, places, heard):
    chat, tokens = chat_that_says(cut(text, places))
    with tokens:
        answer = chat.ask("Hi")
        shown = "".join(piece for _, piece in zip(range(heard), answer, strict=False))
        answer.close()
    assert text.split(STOP)[0].removeprefix(" ").startswith(shown)
    if chat.messages:
        assert chat.messages[-1]["content"] == shown


@pytest.mark.parametrize("name", SETUPS)
def test_a_stop_string_of_ones_own_and_the_next_answer(name):
    """The words before it are in the cache as the model made them, and count as written."""
    model, tokenizer = setup(name)
    chat, reference = greedy(model, tokenizer), Reference(model, tokenizer)
    _, made = reference.ask("Hi")
    whole = tokenizer.decode(made, skip_special_tokens=True)
    stop = whole[5:7]
    kept = whole[: whole.index(stop)]
    assert kept.strip()  # otherwise this shows nothing
    for stops in (stop, [stop], ("never said", stop)):
        chat.set_messages([])
        assert said(chat, "Hi", stop_strings=stops) == chat.messages[-1]["content"]
        assert chat.messages[-1]["content"] == reference.shown(tokenizer.encode(kept))
    reference.turns[-1] = "Hi", tokenizer.encode(kept)
    for question in ("Go on", "And then?"):
        assert said(chat, question) == reference.shown(reference.ask(question)[1])
    assert chat.statistics.reused_tokens > chat.statistics.prompt_tokens


def test_the_format_and_ones_own_stop_strings_are_both_heeded():
    chat, tokens = chat_that_says(list(" One. Two.\nUser: x"))
    for stops, expected in (("Two", "One. "), ((), "One. Two."), (["x", "e."], "On")):
        with tokens:
            assert said(chat, "Hi", stop_strings=stops) == expected
    assert len(chat.messages) == 6


# --- loops ---

BEFORE = list(range(1000, 1050))


@pytest.mark.parametrize("period", [1, 2, 7, 16, 20, 64])
def test_a_loop_is_seen_once_it_has_gone_round_often_enough(period):
    loop = list(range(period))
    needed = max(LOOP_TOKENS, LOOP_TIMES * period)
    ids = BEFORE + (loop * needed)[:needed]
    assert goes_in_circles(ids)
    assert goes_in_circles(ids[len(BEFORE) :])
    assert not goes_in_circles(ids[:-1])


def test_what_varies_is_no_loop():
    assert not goes_in_circles([])
    assert not goes_in_circles([1])
    rng = random.Random(0)
    assert not goes_in_circles([rng.randrange(2) for _ in range(500)])
    counting = [part for number in range(200) for part in (number + 10, 1, 2, 3)]
    assert not goes_in_circles(counting)
    assert not goes_in_circles([1] * 500 + [2])
    assert not goes_in_circles(list(range(65)) * 8)  # longer than what counts as one
