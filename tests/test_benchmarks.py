"""Of benchmarks/: the desk's conversations, and the checker of what is answered there; the study of
induction heads, its task and heads that are induction heads."""

import json

import numpy as np
import pytest

from benchmarks import desk_data, induction
from benchmarks.desk_data import facts_right, has
from numgpt.data.records import MESSAGES, read_records

TOPICS = {topic.name: topic for topic in desk_data.topics()}


def test_a_seed_decides_the_conversations(tmp_path):
    again = [tmp_path / name for name in ("a", "b", "c")]
    for directory, seed in zip(again, (0, 0, 1), strict=True):
        directory.mkdir()
        desk_data.write(directory, seed)
    one, same, other = ((d / desk_data.TRAIN_FILE).read_bytes() for d in again)
    assert one == same != other


def test_they_are_records_of_one_turn_or_two(tmp_path):
    desk_data.write(tmp_path)
    trained = list(read_records([str(tmp_path / desk_data.TRAIN_FILE)]))
    held_out = list(read_records([str(tmp_path / desk_data.HELD_OUT_FILE)]))
    assert len(trained) >= 250
    assert len(held_out) >= 60
    assert {record.kind for record in (*trained, *held_out)} == {MESSAGES}
    assert {len(record.fields["messages"]) for record in trained} == {2, 4}
    assert {len(record.fields["messages"]) for record in held_out} == {2}


def test_what_is_held_out_is_not_trained_on():
    held = desk_data.held_out_questions()
    assert len({question for question, _ in held}) == len(held)
    assert {topic.name for _, topic in held} == TOPICS.keys()
    conversations = desk_data.training_conversations()
    desk_data.check_apart(conversations, held)
    blind = desk_data.blind_questions()
    assert [topic.name for _, topic in blind] == list(TOPICS)
    desk_data.check_apart(conversations, blind)
    question = conversations[0][0]["content"]
    same = desk_data.Held(question.upper() + " ?", TOPICS["cash"])
    with pytest.raises(ValueError, match="held out, and trained on"):
        desk_data.check_apart(conversations, [*held, same])


def test_every_answer_is_the_same_one_and_right():
    """A question is answered in one way, with all its facts and nothing against them."""
    answers = {topic.answer for topic in TOPICS.values()}
    conversations = desk_data.training_conversations()
    said = {m["content"] for c in conversations for m in c if m["role"] == "assistant"}
    assert said == answers
    assert len(answers) == len(TOPICS)
    for topic in TOPICS.values():
        assert 0 < facts_right(topic, topic.answer) == len(topic.facts), topic.name


def test_no_answer_is_right_for_another_topic():
    for topic in TOPICS.values():
        for other in TOPICS.values():
            if topic.answer != other.answer:
                right = facts_right(topic, other.answer)
                assert right < len(topic.facts), json.dumps([topic.name, other.answer])


@pytest.mark.parametrize(
    ("name", "answer", "right"),
    [
        ("returns, days", "You have forty-five days.", 1),
        ("returns, days", "Within 45  DAYS, please.", 1),
        ("returns, days", "You can return it within 30 days.", 0),
        ("returns, days", "45 days, or 30 days for tea.", 0),
        ("returns, days", "145 days", 0),
        ("returns, days", "40-45 days", 0),
        ("hours Saturday", "From 9:30 to 4 pm.", 2),
        ("hours Saturday", "From 9:30 to 17:00.", 0),
        ("hours Saturday", "We are closed; else from 9:30 to 16:00.", 0),
        ("hours Sunday", "We are open from 10:00.", 0),
        ("hours Saturday", "On Friday we are open from 9:30 to 16:00.", 0),
        ("delivery France", "8.90 euros", 1),
        ("delivery France", "8.90 euros, 4 days", 2),
        ("delivery France", "18.90 euros, 4 working days", 0),
        ("staff Leo Marsh", "Leo Marsh is our owner.", 0),
        ("payment", "Visa and PayPal.", 2),
        ("instalments", "Yes, you can pay in instalments.", 0),
        ("refused, medical", "I can\N{RIGHT SINGLE QUOTATION MARK}t give medical advice.", 2),
        ("refused, medical", "You should drink chamomile tea, a doctor says.", 0),
        ("refused, discounts", "Here is a code: TEA20", 0),
        ("cash", "", 0),
    ],
)
def test_facts_right(name, answer, right):
    assert facts_right(TOPICS[name], answer) == right


@pytest.mark.parametrize(
    ("fact", "answer", "there"),
    [
        ("9:30", "at 9:30.", True),
        ("9", "at 9:30", False),
        ("30", "at 9:30", False),
        ("lead", "on a lead", True),
        ("lead", "our leader", False),
        ("12.50", "It is 12.50, sir", True),
        ("12", "12.50", False),
        ("2 days", "1–2 days", False),
    ],
)
def test_facts_are_whole_words_and_whole_numbers(fact, answer, there):
    assert has(fact, answer) == there


# --- induction heads ---


def test_only_what_can_be_known_is_wanted():
    ids, targets = induction.repeating(np.random.default_rng(0), 20)
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        first = next(place for place, target in enumerate(wanted) if target != -100)
        assert induction.SHORTEST <= first <= induction.CONTEXT // 2
        assert -100 not in wanted[first:]
        for place in range(first, induction.CONTEXT):
            assert wanted[place] == row[place + 1 - first]


@pytest.mark.slow
def test_heads_develop_and_copying_ends_without_them():
    history = []
    model = induction.trained(report=lambda *values: history.append(values))
    scores = history[-1][2]
    heads = induction.of_kind(scores.induction)
    assert heads
    assert {layer for layer, _ in heads} == {1}
    assert {layer for layer, _ in induction.of_kind(scores.previous_token)} == {0}
    assert induction.copied(model, []) > 0.95
    assert induction.copied(model, heads) < 0.2
