"""Conversations: every answer is the one that the whole conversation, computed anew, would get,
whatever was kept, dropped, broken off or made again."""

import json

import pytest
from generation.chats import (
    CONTEXT,
    SETUPS,
    Reference,
    count_positions,
    greedy,
    interrupt_after,
    said,
    setup,
    state,
)
from support import talk

from numgpt import Chat

QUESTIONS = ["Hi", " Who are you? ", "I am\nwhat I am.", "x"]


@pytest.fixture(params=SETUPS)
def both(request):
    """A chat, and what it ought to say."""
    model, tokenizer = setup(request.param)
    return greedy(model, tokenizer), Reference(model, tokenizer)


@pytest.fixture
def chat():
    model, tokenizer = setup("gpt_chatml")
    return greedy(model, tokenizer, system="s")


def test_answers_are_those_of_the_whole_conversation_and_cost_only_what_is_new(both, monkeypatch):
    chat, reference = both
    expected = [reference.ask(question) for question in QUESTIONS]
    counts = count_positions(chat.model, monkeypatch)
    known = 0
    for question, (ids, made) in zip(QUESTIONS, expected, strict=True):
        del counts[:]
        assert said(chat, question) == reference.shown(made)
        cost = chat.statistics
        assert (cost.new_tokens, cost.context_tokens) == (len(made), len(ids) + len(made))
        assert cost.reused_tokens + cost.prompt_tokens == len(ids)
        assert counts[0] == cost.prompt_tokens
        assert set(counts[1:]) <= {1}
        assert len(counts) in (len(made), len(made) + 1)  # with the one before an end token
        assert known - 1 <= cost.reused_tokens <= known  # an answer's last token may be new
        known = cost.context_tokens
    assert chat.dropped_messages == 0
    roles = [m["role"] for m in chat.messages]
    assert roles == ["user", "assistant"] * len(QUESTIONS)
    assert [m["content"] for m in chat.messages[::2]] == QUESTIONS
    shown = [reference.shown(made) for _, made in expected]
    assert [m["content"] for m in chat.messages[1::2]] == shown


def test_a_full_context_drops_the_oldest_turns_and_keeps_the_system_prompt(both):
    chat, reference = both
    chat.set_messages([{"role": "system", "content": "Be brief."}])
    reference.system = "Be brief."
    recomputed = 0
    for number in range(12):
        ids, made = reference.ask(f"Question {number}?")
        assert said(chat, f"Question {number}?") == reference.shown(made)
        assert chat.dropped_messages == 2 * reference.dropped
        assert chat.statistics.dropped_messages == 2 * reference.dropped
        assert chat.statistics.context_tokens == len(ids) + len(made) <= CONTEXT
        recomputed += number > 0 and chat.statistics.reused_tokens < CONTEXT // 8
    assert reference.dropped > 3  # otherwise this shows nothing
    assert recomputed < 12 - reference.dropped // 2  # most turns cost their new tokens only
    assert len(chat.messages) == 1 + 2 * 12
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    chat.reset()
    assert state(chat) == ([{"role": "system", "content": "Be brief."}], 0)
    reference.turns, reference.dropped = [], 0
    assert said(chat, "Again") == reference.shown(reference.ask("Again")[1])


def test_a_message_that_can_not_fit_changes_nothing(both):
    chat, reference = both
    for number in range(4):
        reference.ask(f"Question {number}?")
        said(chat, f"Question {number}?")
    before = state(chat)
    for length in (CONTEXT, CONTEXT - 20, 10_000):
        with pytest.raises(ValueError, match=f"context of {CONTEXT}: shorten it") as error:
            chat.ask("z! " * length)
        assert "\n" not in str(error.value)
        assert state(chat) == before
    assert said(chat, "And now?") == reference.shown(reference.ask("And now?")[1])


def test_a_long_conversation_is_cut_without_trying_every_length(chat, monkeypatch):
    turns = [{"role": role, "content": "x" * 9} for role in ("user", "assistant")] * 3000
    chat.set_messages(turns)
    tried = []
    ids = chat.template.ids
    monkeypatch.setattr(chat.template, "ids", lambda *a, **k: tried.append(1) or ids(*a, **k))
    reference = Reference(chat.model, chat.tokenizer)
    # More than there is room for.
    reference.turns = [("x" * 9, chat.tokenizer.encode("x" * 9))] * 40
    assert said(chat, "Hi") == reference.shown(reference.ask("Hi")[1])
    assert chat.dropped_messages == len(turns) - 2 * (40 - reference.dropped)
    assert len(tried) < 20


# --- answers that are broken off ---


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_a_reader_heard_before_leaving_is_part_of_the_conversation(both, pieces):
    chat, reference = both
    reference.ask("Hi")
    said(chat, "Hi")
    answer = chat.ask("Go on")
    heard = "".join(next(answer) for _ in range(pieces))
    answer.close()
    check_goes_on_after(chat, reference, "Go on", heard)


@pytest.mark.parametrize("calls", [1, 4])
def test_ctrl_c_keeps_what_was_said(both, monkeypatch, calls):
    chat, reference = both
    reference.ask("Hi")
    said(chat, "Hi")
    heard = []
    with monkeypatch.context() as patch:
        interrupt_after(chat.model, patch, calls)
        with pytest.raises(KeyboardInterrupt):
            heard.extend(chat.ask("Go on"))
    check_goes_on_after(chat, reference, "Go on", "".join(heard))


def check_goes_on_after(chat: Chat, reference: Reference, question: str, heard: str) -> None:
    _, made = reference.ask(question)
    cut = made[: chat.statistics.new_tokens]
    assert 0 < len(cut) < len(made)
    if reference.plain and (text := chat.tokenizer.decode(cut)).endswith("\n"):
        cut = chat.tokenizer.encode(text[:-1])  # "\nUser:" could have come, so it was not said yet
    reference.turns[-1] = question, cut
    # A character whose last bytes are missing is held back, too.
    assert reference.shown(cut).rstrip("\ufffd") == heard.rstrip("\ufffd")
    assert chat.messages[-1]["content"] == heard
    assert said(chat, "And then?") == reference.shown(reference.ask("And then?")[1])


def test_ctrl_c_before_the_first_token_was_never_a_question(both, monkeypatch):
    chat, reference = both
    reference.ask("Hi")
    said(chat, "Hi")
    before = state(chat)
    with monkeypatch.context() as patch:
        interrupt_after(chat.model, patch, 0)
        with pytest.raises(KeyboardInterrupt):
            said(chat, "Lost")
    assert state(chat) == before
    assert (chat.statistics.new_tokens, chat.statistics.tokens_per_second) == (0, 0)
    assert said(chat, "Next") == reference.shown(reference.ask("Next")[1])


def test_a_new_question_ends_the_answer_before(both):
    chat, reference = both
    abandoned = chat.ask("Go on")
    heard = next(abandoned)
    _, made = reference.ask("Go on")
    again = chat.ask("Next")
    kept = made[: chat.statistics.new_tokens]
    if reference.trims and heard != heard.strip():  # the model's own tokens do not survive that
        kept = chat.tokenizer.encode(heard.strip())
    reference.turns[-1] = "Go on", kept
    assert "".join(again) == reference.shown(reference.ask("Next")[1])
    assert [m["content"] for m in chat.messages[:3]] == ["Go on", heard, "Next"]
    assert list(abandoned) == []
    never_heard = chat.ask("Lost")
    assert said(chat, "Last") == reference.shown(reference.ask("Last")[1])
    assert list(never_heard) == []
    assert len(chat.messages) == 6


@pytest.mark.parametrize("action", ["reset", "set_messages", "save", "retry"])
def test_whatever_comes_next_ends_the_answer_before(chat, tmp_path, action):
    answer = chat.ask("Go on")
    heard = next(answer)
    if action == "save":
        chat.save(tmp_path / "talk.json")
        assert json.loads((tmp_path / "talk.json").read_text())[1:] == talk("Go on", heard)
    elif action == "retry":
        assert "".join(chat.retry()).startswith(heard)
        assert len(chat.messages) == 3
    else:
        chat.reset() if action == "reset" else chat.set_messages([])
        assert list(answer) == []
        said(chat, "New")
        assert chat.messages[-2]["content"] == "New"
        assert len([m for m in chat.messages if m["role"] == "user"]) == 1


# --- another answer, another conversation ---


def test_retry_takes_the_place_of_the_last_answer(both):
    chat, reference = both
    for question in QUESTIONS[:2]:
        reference.ask(question)
        said(chat, question)
    first = chat.messages
    assert "".join(chat.retry()) == first[-1]["content"]  # greedy: the same again
    assert chat.messages == first
    assert chat.statistics.prompt_tokens == 1  # all but the last token is in the cache
    others = {"".join(chat.retry(do_sample=True, temperature=9.0, seed=n)) for n in range(3)}
    assert len(others | {first[-1]["content"]}) > 2
    assert chat.messages[:-1] == first[:-1]
    assert "".join(chat.retry()) == first[-1]["content"]
    assert said(chat, "Next") == reference.shown(reference.ask("Next")[1])


def test_retry_keeps_the_old_answer_until_there_is_another(chat, monkeypatch):
    said(chat, "Hi")
    before = state(chat)
    with monkeypatch.context() as patch:
        interrupt_after(chat.model, patch, 0)
        with pytest.raises(KeyboardInterrupt):
            list(chat.retry())
    assert state(chat) == before
    chat.retry().close()
    assert state(chat) == before
    with pytest.raises(ValueError, match="top_p=2"):
        chat.retry(top_p=2)
    assert state(chat) == before


def test_nothing_can_be_retried_before_the_first_question(chat):
    with pytest.raises(ValueError, match="no answer yet"):
        chat.retry()


def test_an_answer_of_nothing_is_an_answer(chat):
    end = chat.tokenizer.special_tokens["<|im_end|>"]
    everything_but = [[id] for id in range(chat.tokenizer.vocab_size) if id != end]
    assert said(chat, "Hi", bad_words_ids=everything_but) == ""
    assert chat.messages[1:] == talk("Hi", "")
    assert "".join(chat.retry()) != ""
    assert len(chat.messages) == 3


def test_save_and_load_are_the_conversation(both, tmp_path):
    chat, _ = both
    chat.set_messages([{"role": "system", "content": "Be \n brief."}])
    for question in QUESTIONS[:2]:
        said(chat, question)
    chat.save(tmp_path / "talk.json")
    messages = chat.messages
    other = greedy(chat.model, chat.tokenizer)
    other.load(tmp_path / "talk.json")
    assert other.messages == messages == json.loads((tmp_path / "talk.json").read_text("utf-8"))
    # From here on it is what somebody said, not the tokens that it was made of.
    third = greedy(chat.model, chat.tokenizer)
    third.set_messages(messages)
    assert said(other, "Next") == said(third, "Next")
    assert other.messages == third.messages


FORGED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "ids": [97, 97]}]


def test_a_file_can_not_bring_tokens(chat, tmp_path):
    for forged in (FORGED, [FORGED[0] | {"ids": "x", "more": 1}, FORGED[1] | {"ids": None}]):
        (tmp_path / "talk.json").write_text(json.dumps(forged))
        chat.load(tmp_path / "talk.json")
        assert chat.messages == [{k: m[k] for k in ("role", "content")} for m in forged]
        answer = said(chat, "c")
        chat.set_messages(chat.messages[:2])
        assert said(chat, "c") == answer
