"""Logits processors and greedy decoding against transformers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.references import CONFIGS, small_model, their_generation, to_transformers
from support import GOLDENS, assert_close, clear_model

from numgpt.generation import GenerationOptions, process_logits
from numgpt.generation.processors import choose, kth_largest
from numgpt.layers import softmax_forward

VOCABULARY, END = 37, 36
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 5},
    "top_k one": {"top_k": 1},
    "top_p": {"top_p": 0.8},
    "top_p small": {"top_p": 0.05},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.6},
    "bad_words_ids": {"bad_words_ids": [[3], [5, 6], [1, 2, 3], [END]]},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size one": {"no_repeat_ngram_size": 1},
    "min_length": {"min_length": 9},
    "min_length reached": {"min_length": 8},
}
CASES["all"] = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
CASES["all"] |= {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
CASES["all"] |= {"bad_words_ids": [[4], [0, 1]], "min_length": 12}


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """logits (3, V) and the ids (3, 8) before them, some of which end as a banned word begins."""
    rng = np.random.default_rng(list(name.encode()))
    ids = rng.integers(VOCABULARY, size=(3, 8))
    ids[0, -1], ids[1, -2:] = 5, (1, 2)
    ids[0, :2], ids[2, 3:] = (5, 9), (7, 8, 7, 8, 7)
    return rng.normal(scale=3, size=(3, VOCABULARY)), ids


def their_probabilities(logits: np.ndarray, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """(n, V) of the next token, 0 where it can't be chosen: transformers' logits processors, in the
    order in which its `generate` applies them."""
    import torch
    from transformers import LogitsProcessorList, generation

    processors = LogitsProcessorList()
    if "repetition_penalty" in options:
        processors.append(
            generation.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])
        )
    if options.get("no_repeat_ngram_size"):
        processors.append(generation.NoRepeatNGramLogitsProcessor(options["no_repeat_ngram_size"]))
    if "bad_words_ids" in options:
        processors.append(
            generation.NoBadWordsLogitsProcessor(options["bad_words_ids"], torch.tensor([END]))
        )
    if options.get("min_length"):
        processors.append(generation.MinLengthLogitsProcessor(options["min_length"], END))
    for name, warper in (
        ("temperature", generation.TemperatureLogitsWarper),
        ("top_k", generation.TopKLogitsWarper),
        ("top_p", generation.TopPLogitsWarper),
        ("min_p", generation.MinPLogitsWarper),
    ):
        if name in options and not (name == "top_p" and options[name] == 1.0):
            processors.append(warper(options[name]))
    scores = processors(torch.tensor(ids), torch.tensor(logits))
    return torch.softmax(scores, dim=-1).numpy()


def record() -> dict[str, np.ndarray]:
    return {name: their_probabilities(*inputs(name), options) for name, options in CASES.items()}


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.1, 3),
        "top_k": st.integers(1, 40),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.0, 0.9),
        "repetition_penalty": st.floats(0.5, 2.5),
        "bad_words_ids": st.lists(
            st.lists(st.integers(0, 36), min_size=1, max_size=3), min_size=1, max_size=4
        ),
        "min_length": st.integers(0, 12),
        "no_repeat_ngram_size": st.integers(0, 4),
    },
)


def our_probabilities(logits, ids, options):
    options = GenerationOptions(do_sample=True, **({"top_k": None} | options))
    return softmax_forward(process_logits(logits, ids, options, [END]))[0]


@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_recorded_transformers(name):
    ours = our_probabilities(*inputs(name), CASES[name])
    with np.load(GOLDENS / "processors.npz") as goldens:
        assert_close(ours, goldens[name])


def test_a_choice_is_where_the_added_probabilities_pass_the_level():
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]] * 6))
    logits[5, 3] = -np.inf
    levels = np.array([0.0, 0.0999, 0.1001, 0.5999, 0.9999, 0.9999])
    assert choose(logits, levels).tolist() == [0, 0, 1, 2, 3, 2]
    assert choose(logits, None).tolist() == [3, 3, 3, 3, 3, 2]


@pytest.mark.live("torch", "transformers")
@given(options=OPTIONS, seed=st.integers(0, 2**32), time=st.integers(1, 10))
@settings(max_examples=300)
def test_probabilities_equal_transformers(options, seed, time):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(3, 37))
    ids = rng.integers(37, size=(3, time))
    probabilities = our_probabilities(logits, ids, options)
    assert_close(probabilities, their_probabilities(logits, ids, options))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text_equals_transformers(name):
    model = small_model(name)
    theirs = to_transformers(model).eval()
    prompt = np.random.default_rng(1).integers(36, size=(3, 4))
    limit = model.config.n_positions
    for options in (
        {},
        {"repetition_penalty": 1.4},
        {"bad_words_ids": [[3], [5, 6]], "min_new_tokens": 3},
        {"no_repeat_ngram_size": 2},
    ):
        ours = model.generate(prompt, max_length=limit, eos_token_id=36, **options)
        common = {"max_length": limit, "do_sample": False, "eos_token_id": 36, "pad_token_id": 36}
        expected = their_generation(theirs, prompt, use_cache=True, **common, **options)
        assert ours.tolist() == expected.tolist()


@pytest.mark.live("torch", "transformers")
def test_left_padded_batches_equal_transformers():
    model = small_model("default")
    theirs = to_transformers(model).eval()
    ids, mask = [[0, 0, 5, 6], [1, 2, 3, 4]], [[0, 0, 1, 1], [1, 1, 1, 1]]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = their_generation(theirs, ids, mask, **options)
    assert model.generate([[5, 6], [1, 2, 3, 4]], max_new_tokens=8).tolist() == expected.tolist()


def test_a_banned_sequence_bans_its_last_token_only_after_its_start():
    options = GenerationOptions(bad_words_ids=[[4], [1, 2]])
    processed = process_logits(np.zeros((2, 5)), np.array([[0, 1], [1, 0]]), options)
    assert np.isneginf(processed).tolist() == [
        [False, False, True, False, True],
        [False, False, False, False, True],
    ]


def test_the_input_stays_as_it_is():
    logits = np.random.default_rng(0).normal(size=(2, 9))
    before = logits.copy()
    process_logits(
        logits, np.array([[1], [2]]), GenerationOptions(do_sample=True, top_k=2, top_p=0.5)
    )
    np.testing.assert_array_equal(logits, before)


@given(
    row=st.one_of(
        st.lists(
            st.floats(-5, 5, width=32) | st.sampled_from([-np.inf, np.inf, np.nan]),
            min_size=1,
            max_size=300,
        ),
        st.integers(1, 3000).map(lambda n: np.random.default_rng(n).integers(-40, 40, n)),
    ),
    k=st.integers(1, 300),
)
def test_the_kth_largest_is_that_of_the_sorted_row(row, k):
    row = np.array(row, np.float32)
    k = min(k, len(row))
    np.testing.assert_array_equal(kth_largest(row, k), np.sort(row)[-k])  # NaN is the largest


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("penalty", [0.6, 1.8])
def test_a_repetition_penalty_passes_over_padding_as_transformers_does(penalty):
    model = clear_model()
    theirs = to_transformers(model).eval()
    rng = np.random.default_rng(0)
    for pad in range(0, model.config.vocab_size, 6):
        ids, mask = rng.integers(model.config.vocab_size, size=(3, 6)), np.ones((3, 6), int)
        for row, padding in ((1, 2), (2, 5)):
            ids[row, :padding], mask[row, :padding] = pad, 0
        options = {"max_new_tokens": 6, "repetition_penalty": penalty, "pad_token_id": pad}
        expected = their_generation(
            theirs, ids, mask, do_sample=False, eos_token_id=None, **options
        )
        ours = model.generate(ids, attention_mask=mask, eos_token_id=[], **options)
        np.testing.assert_array_equal(ours, expected.numpy())
