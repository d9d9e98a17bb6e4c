"""Logits processors and greedy decoding against transformers."""

from __future__ import annotations

import numpy as np
import pytest
from generation import processor_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from models.references import CONFIGS, small_model, to_transformers
from support import GOLDENS, assert_close, clear_model

from numgpt.generation import GenerationOptions, process_logits
from numgpt.generation.processors import choose, kth_largest
from numgpt.layers import softmax_forward

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
    return softmax_forward(process_logits(logits, ids, options, [reference.END]))[0]


@pytest.mark.parametrize("name", reference.CASES)
def test_probabilities_equal_recorded_transformers(name):
    ours = our_probabilities(*reference.inputs(name), reference.CASES[name])
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
    assert_close(probabilities, reference.their_probabilities(logits, ids, options))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text_equals_transformers(name):
    import torch

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
        expected = theirs.generate(
            torch.tensor(prompt),
            attention_mask=torch.ones(3, 4, dtype=torch.long),
            max_length=limit,
            do_sample=False,
            eos_token_id=36,
            pad_token_id=36,
            use_cache=True,
            **options,
        )
        assert ours.tolist() == expected.tolist()


@pytest.mark.live("torch", "transformers")
def test_left_padded_batches_equal_transformers():
    import torch

    model = small_model("default")
    theirs = to_transformers(model).eval()
    ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    expected = theirs.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
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
    import torch

    model = clear_model()
    theirs = to_transformers(model).eval()
    rng = np.random.default_rng(0)
    for pad in range(0, model.config.vocab_size, 6):
        ids, mask = rng.integers(model.config.vocab_size, size=(3, 6)), np.ones((3, 6), int)
        for row, padding in ((1, 2), (2, 5)):
            ids[row, :padding], mask[row, :padding] = pad, 0
        expected = theirs.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=6,
            repetition_penalty=penalty,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=pad,
        )
        ours = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            repetition_penalty=penalty,
            eos_token_id=[],
            pad_token_id=pad,
        )
        np.testing.assert_array_equal(ours, expected.numpy())
