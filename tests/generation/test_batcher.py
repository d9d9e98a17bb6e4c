"""Sequences that decode together: each is what it is alone, whoever comes and goes beside it."""

import numpy as np
import pytest
from generation.chats import count_positions
from hypothesis import given, settings
from hypothesis import strategies as st
from models.references import small_model
from support import clear

from numgpt.generation import GenerationOptions, batcher, generate
from numgpt.generation.batcher import Batcher
from numgpt.layers.softmax import log_softmax

MODELS = {name: clear(small_model(name, np.float64)) for name in ("default", "llama_grouped")}
VOCAB = min(model.config.vocab_size for model in MODELS.values())
CONTEXT = min(model.context_length for model in MODELS.values())
KINDS = (
    {},
    {"do_sample": True, "seed": 3},
    {"do_sample": True, "temperature": 1.7, "top_k": 5, "seed": 4},
    {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2},
    {"do_sample": True, "top_p": 0.8, "min_new_tokens": 4, "eos_token_id": [1, 2, 3], "seed": 5},
    {"slide": True, "max_new_tokens": 3 * CONTEXT},
)
REQUESTS = st.tuples(
    st.integers(0, 6),  # the step before which it comes
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 2),
    st.sampled_from(KINDS),
    st.integers(1, 12),  # new tokens
    st.one_of(st.none(), st.integers(1, 5)),  # steps after which it is cancelled
)


def options_of(kind, most):
    chosen = {"max_new_tokens": most, "eos_token_id": []} | kind
    chosen["min_new_tokens"] = min(kind.get("min_new_tokens", 0), chosen["max_new_tokens"])
    return GenerationOptions(**chosen)


def finish(batch):
    while batch.busy:
        batch.step()


def alone(model, prompt, options, rng=None):
    one = Batcher(model, 1)
    sequence = one.add(np.array(prompt), options, rng)
    finish(one)
    return sequence


def assert_as_alone(model, *sequences):
    for sequence in sequences:
        assert sequence.made == alone(model, sequence.prompt, sequence.options).made


@pytest.mark.parametrize("name", MODELS)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=7), slots=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_each_sequence_is_what_it_is_alone(name, requests, slots):
    model, batch, sequences = MODELS[name], Batcher(MODELS[name], slots), {}
    ended = []
    for step in range(2000):
        for number, (comes, prompt, kind, most, _) in enumerate(requests):
            if comes == step:
                options = options_of(kind, most)
                sequences[number] = batch.add(np.array(prompt), options)
        for number, (comes, *_, goes) in enumerate(requests):
            if goes is not None and step == comes + goes:
                batch.cancel(sequences[number])
        before = [sequence for sequence in sequences.values() if sequence.finish_reason is None]
        now = batch.step()
        assert len(batch.decoding) <= slots
        assert all(sequence in before and sequence.finish_reason for sequence in now)
        ended += now
        if step > 12 and not batch.busy:
            break
    assert not batch.busy
    for number, (_, prompt, kind, most, _) in enumerate(requests):
        sequence = sequences[number]
        whole = alone(model, prompt, options_of(kind, most))
        if sequence.finish_reason == "cancelled":
            assert sequence.made == whole.made[: len(sequence.made)]
        else:
            assert (sequence.made, sequence.finish_reason) == (whole.made, whole.finish_reason)
            assert sum(one is sequence for one in ended) == 1


def test_a_text_does_not_depend_on_its_neighbours():
    model = MODELS["default"]
    options = {"do_sample": True, "max_new_tokens": 9, "seed": 11, "eos_token_id": []}
    together = model.generate([[1, 2, 3], [4]], num_return_sequences=3, **options)
    assert together[0].tolist() == model.generate([1, 2, 3], **options)[0].tolist()
    two = model.generate([[1, 2, 3], [4]], num_return_sequences=2, **options)
    assert two[[0, 1, 2, 3]].tolist() == together[[0, 1, 3, 4]].tolist()
    assert len({tuple(row[3:]) for row in together.tolist()}) == 6


@pytest.mark.parametrize("slots", [1, 2, 5, 8])
def test_continuations_of_one_prompt_share_its_reading(slots, monkeypatch):
    model = MODELS["default"]
    counts = count_positions(model, monkeypatch)
    batch = Batcher(model, slots)
    options = options_of({"do_sample": True}, 2)
    rngs = [np.random.default_rng(n) for n in range(5)]
    sequences = [batch.add(np.array([5, 6, 7, 8]), options, rng) for rng in rngs]
    finish(batch)
    assert [count for count in counts if count != 1] == [4]
    monkeypatch.undo()
    for n, sequence in enumerate(sequences):
        expected = alone(model, [5, 6, 7, 8], options, np.random.default_rng(n))
        assert sequence.made == expected.made


def test_more_continuations_than_slots_of_several_prompts(monkeypatch):
    model = MODELS["llama_grouped"]
    counts = count_positions(model, monkeypatch)
    batch, sequences = Batcher(model, 4), []
    for prompt in ([1, 2, 3], [4], [5, 6]):
        for n in range(3):
            options = options_of({"do_sample": True, "seed": n}, 2 + 3 * n)
            sequences.append(batch.add(np.array(prompt), options))
    batch.step()
    assert counts == [3]  # one pass, as wide as the longest
    finish(batch)
    monkeypatch.undo()
    assert_as_alone(model, *sequences)


def test_padding_before_shorter_prompts_has_not_occurred():
    model, kind = MODELS["default"], {"repetition_penalty": 3.0}
    for id in range(model.config.vocab_size):
        batch = Batcher(model, 2)
        sequences = [batch.add(np.array(p), options_of(kind, 2)) for p in ([id], [3, 1, 2, id])]
        finish(batch)
        assert_as_alone(model, *sequences)


def test_a_long_prompt_is_read_in_parts_while_others_decode(monkeypatch):
    monkeypatch.setattr(batcher, "CHUNK", 3)
    model = MODELS["default"]
    counts = count_positions(model, monkeypatch)
    batch = Batcher(model, 3)
    first = batch.add(np.array([1, 2, 3, 4, 5]), options_of({}, 6))
    batch.step()
    assert counts == [5]  # whole: nobody waits for it
    later = batch.add(np.arange(8), options_of({}, 2))
    behind = batch.add(np.array([3]), options_of({}, 2))
    made = []
    while batch.busy:
        batch.step()
        made.append((len(first.made), len(later.made), len(behind.made)))
    assert counts == [5, 1, 3, 1, 3, 1, 2, 1, 1, 1]
    assert made == [(2, 0, 0), (3, 0, 0), (4, 1, 1), (5, 2, 2), (6, 2, 2)]


def test_a_prompt_that_is_being_read_moves_up_where_others_leave(monkeypatch):
    monkeypatch.setattr(batcher, "CHUNK", 2)
    model = MODELS["llama_grouped"]
    for cancelled in (None, 0, 1):
        batch = Batcher(model, 4)
        short = [batch.add(np.array([n, 4]), options_of({}, 2 + n)) for n in range(3)]
        batch.step()
        long = batch.add(np.arange(9), options_of({}, 5))
        if cancelled is not None:
            batch.step()
            batch.cancel(short[cancelled])
        finish(batch)
        assert_as_alone(model, long)


def test_a_cancelled_sequence_leaves_at_once_wherever_it_is(monkeypatch):
    monkeypatch.setattr(batcher, "CHUNK", 2)
    model = MODELS["default"]
    batch = Batcher(model, 2)
    decoding = batch.add(np.array([1]), options_of({}, 9))
    batch.step()
    reading, waiting = (batch.add(np.arange(8) + n, options_of({}, 9)) for n in range(2))
    batch.step()
    last = batch.add(np.array([2, 3]), options_of({}, 3))
    for sequence in (reading, waiting, decoding, decoding):
        batch.cancel(sequence)
        assert sequence.finish_reason == "cancelled"
    assert batch.decoding == []
    finish(batch)
    assert len(decoding.made) == 2
    assert not reading.made
    assert_as_alone(model, last)
    batch.cancel(last)
    assert last.finish_reason == "length"


def test_equal_options_are_processed_together(monkeypatch):
    groups, process = [], batcher.process_logits

    def counted(logits, *arguments):
        groups.append(len(logits))
        return process(logits, *arguments)

    monkeypatch.setattr(batcher, "process_logits", counted)
    batch = Batcher(MODELS["default"], 5)
    sampled = {"top_k": 5, "do_sample": True}
    for kind in ({}, sampled, {}, sampled | {"seed": 1}):
        batch.add(np.array([1, 2]), options_of(kind, 1))
    batch.step()
    assert groups == [2, 2]


class Unhashable(dict):
    """Adds what it holds; refills one array of its own."""

    def __call__(self, ids, logits):
        self.setdefault("out", np.empty_like(logits))
        self["out"][...] = logits
        self["out"][:, : len(ids[0])] -= 1
        return self["out"]


def test_a_callers_processor_sees_its_sequence_as_alone():
    model = MODELS["default"]

    def bans_until_eight(ids, logits):
        logits[:, : 20 if ids.shape[1] < 8 else 0] = -np.inf
        return logits

    kind = {"logits_processor": [bans_until_eight]}
    batch = Batcher(model, 2)
    sequences = [batch.add(p, options_of(kind, 9)) for p in ([1, 2], [1] * 7)]
    finish(batch)
    assert_as_alone(model, *sequences)
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 3}
    first, second, _ = generate(model, [1, 2], logits_processor=[Unhashable()], **options).scores
    assert not np.array_equal(first, second)


def test_whatever_a_processor_raises_leaves_the_others_alone():
    def fails(ids, logits):
        raise KeyError("mine")

    model = MODELS["default"]
    batch = Batcher(model, 2)
    bad = batch.add([5], options_of({"logits_processor": [fails]}, 4))
    good = batch.add([6, 7], options_of({}, 4))
    assert batch.step() == [bad]
    finish(batch)
    assert_as_alone(model, good)
    with pytest.raises(KeyError, match="mine"):
        model.generate([5], logits_processor=[fails])


def test_what_is_wrong_with_one_sequence_ends_that_one_alone():
    model = MODELS["default"]
    banned = [[id] for id in range(model.config.vocab_size)]

    def refuses_seven(ids, logits):
        return np.where(ids[:, -1:] == 7, np.nan, logits)

    batch = Batcher(model, 4)
    kind = {"logits_processor": [refuses_seven]}
    good, bad = (batch.add(np.array([1, last]), options_of(kind, 4)) for last in (6, 7))
    forbidden = batch.add(np.array([1]), options_of({"bad_words_ids": banned}, 4))
    assert batch.step() == [bad, forbidden]
    assert bad.finish_reason == forbidden.finish_reason == "error"
    assert "a logits_processor is wrong" in str(bad.error)
    assert "every token that could come next is forbidden" in str(forbidden.error)
    assert len(good.made) == 1
    assert good.error is None


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ([99], {}, "99, outside the vocabulary"),
        ([], {}, "empty"),
        ([1] * 400, {}, "shorten the input"),
        ([1], {"num_beams": 4}, "num_beams=4: beams decode by themselves"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens=0: expected"),
        ([1], {"temperature": 0}, "temperature=0: expected"),
    ],
)
def test_what_is_invalid_is_not_added_and_stops_nobody(prompt, kind, message):
    model = MODELS["default"]
    batch = Batcher(model, 2)
    neighbour = batch.add([1, 2], options_of({}, 3))
    batch.step()
    with pytest.raises(ValueError, match=message):
        batch.add(prompt, options_of(kind, 3))
    finish(batch)
    assert_as_alone(model, neighbour)
    with pytest.raises(ValueError, match="slots=0: expected a whole number from 1 up"):
        Batcher(model, 0)


def test_a_prompt_that_fills_the_context_has_ended():
    model = MODELS["default"]
    batch = Batcher(model, 1)
    prompt = np.zeros(model.context_length, np.int64)
    assert batch.add(prompt, options_of({}, 4)).finish_reason == "context"
    assert not batch.busy
    assert batch.step() == []


@pytest.mark.parametrize("kind", KINDS[:4])
def test_log_probabilities_of_what_was_chosen(kind):
    model = MODELS["default"]
    options = {"max_new_tokens": 6, "eos_token_id": [9], "num_return_sequences": 2} | kind
    if not kind.get("do_sample"):
        options["num_return_sequences"] = 1
    found = generate(
        model, [[1, 2], [3, 4]], return_dict_in_generate=True, output_scores=True, **options
    )
    for row, made in enumerate(found.lengths.tolist()):
        ids = found.sequences[row, : 2 + made]
        expected = model.log_probs(ids[:-1], ids[1:])[0, 1:]
        np.testing.assert_allclose(found.logprobs[row, :made], expected, rtol=1e-9)
        chosen = [log_softmax(found.scores[n][row])[ids[2 + n]] for n in range(made)]
        np.testing.assert_allclose(found.sampled_logprobs[row, :made], chosen, rtol=1e-12)
        assert not found.logprobs[row, made:].any()
        assert not found.sampled_logprobs[row, made:].any()
    assert found.logprobs.shape == found.sampled_logprobs.shape
    assert generate(model, [1], num_beams=2, return_dict_in_generate=True).logprobs is None
