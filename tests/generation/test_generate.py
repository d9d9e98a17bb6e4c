"""Generation: cache, decoding loop, reproducibility, batches, what ends a sequence, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_close, clear_model

from numgpt import CharTokenizer, KVCache
from numgpt.generation import LengthWarning, generate_each


def greedy_without_cache(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(ids)[0, -1].argmax()))
    return ids


@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_cached_logits_equal_the_full_forward(cuts, seed):
    """Fed piece by piece, of whatever lengths, the cache gives the logits of the whole."""
    small_model = clear_model()
    total = min(sum(cuts), 32)
    ids = np.random.default_rng(seed).integers(61, size=(2, total))
    cache, pieces, start = KVCache(small_model, 2, total), [], 0
    for cut in cuts:
        piece = ids[:, start : start + cut]
        if piece.shape[1]:
            x = small_model.hidden(piece, cache.view(piece.shape[1]))
            pieces.append(small_model.unembedding.logits(x).reshape(*piece.shape, -1))
        start += cut
    assert_close(np.concatenate(pieces, axis=1), small_model(ids))
    assert cache.length == total


def test_greedy_equals_recomputing_everything(small_model):
    out = small_model.generate([5, 6, 7], max_new_tokens=20)
    assert out.tolist() == [greedy_without_cache(small_model, [5, 6, 7], 20)]
    assert out.dtype == np.int64


def test_length_counts_as_transformers_counts(small_model):
    assert small_model.generate([1, 2, 3], max_length=10).shape == (1, 10)
    assert small_model.generate([1, 2, 3], max_new_tokens=4).shape == (1, 7)
    assert small_model.generate([1, 2, 3], max_new_tokens=4, max_length=5).shape == (1, 7)
    assert small_model.generate([1, 2, 3]).shape == (1, 23)


def test_sampling_is_reproducible(small_model):
    options = {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 5, "top_k": 50}
    first = small_model.generate([1, 2], seed=3, **options)
    np.testing.assert_array_equal(first, small_model.generate([1, 2], seed=3, **options))
    assert not np.array_equal(first, small_model.generate([1, 2], seed=4, **options))
    assert len({tuple(row) for row in first.tolist()}) > 1
    assert (first[:, :2] == [1, 2]).all()


def test_samples_follow_the_distribution(small_model):
    logits = small_model([3, 1])[0, -1].astype(np.float64) / 2
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    n = 4000
    options = {"max_new_tokens": 1, "do_sample": True, "temperature": 2.0, "top_k": 0, "seed": 0}
    out = small_model.generate([3, 1], num_return_sequences=n, **options)
    counts = np.bincount(out[:, -1], minlength=61)
    # each count is binomial: five standard deviations, and two for the rarest
    assert (np.abs(counts - n * expected) <= 5 * np.sqrt(n * expected) + 2).all()


def test_stream_equals_generate(small_model):
    options = {"max_new_tokens": 15, "do_sample": True, "seed": 5}
    streamed = list(small_model.stream([9, 8], **options))
    assert streamed == small_model.generate([9, 8], **options)[0, 2:].tolist()
    with pytest.raises(ValueError, match="one sequence"):
        small_model.stream([[1], [2]])
    with pytest.raises(ValueError, match="temperature"):  # at the call, not at the first token
        small_model.stream([1], temperature=0)


def test_unequal_prompts_are_padded_with_zeros(small_model):
    out = small_model.generate([[1, 2, 3, 4, 5], [6], [7, 8, 9]], max_new_tokens=9)
    assert out[:, :5].tolist() == [[1, 2, 3, 4, 5], [0, 0, 0, 0, 6], [0, 0, 7, 8, 9]]
    padded, mask = np.array([[0, 0, 7, 8], [1, 2, 3, 4]]), [[0, 0, 1, 1], [1, 1, 1, 1]]
    with_mask = small_model.generate(padded, attention_mask=mask, max_new_tokens=5)
    assert with_mask[0, 2:].tolist() == small_model.generate([7, 8], max_new_tokens=5)[0].tolist()


def test_the_end_of_text_token_ends_a_sequence(small_model):
    free = small_model.generate([1, 2], max_new_tokens=12)[0].tolist()
    eos = free[6]
    out = small_model.generate([1, 2], max_new_tokens=12, eos_token_id=eos)[0].tolist()
    assert out == free[: free.index(eos, 2) + 1]
    small_model.config.eos_token_id = eos
    assert small_model.generate([1, 2], max_new_tokens=12)[0].tolist() == out
    assert list(small_model.stream([1, 2], max_new_tokens=12)) == out[2:-1]
    longer = small_model.generate([1, 2], max_new_tokens=12, min_new_tokens=9)[0].tolist()
    assert eos not in longer[2:11]


def test_sequences_that_ended_are_filled_up(small_model):
    options = {"max_new_tokens": 25, "do_sample": True, "num_return_sequences": 6, "seed": 1}
    out = small_model.generate([1], eos_token_id=7, pad_token_id=3, **options)
    ended = [row.tolist() for row in out if 7 in row[1:-1]]
    assert ended  # otherwise the seed shows nothing
    for row in ended:
        assert set(row[row.index(7, 1) + 1 :]) <= {3}


def test_stop_strings_end_a_sequence(small_model):
    tokenizer = CharTokenizer([chr(48 + i) for i in range(61)])
    free = tokenizer.decode(small_model.generate([1, 2], max_new_tokens=20)[0])
    stop = free[9:11]
    out = small_model.generate([1, 2], max_new_tokens=20, stop_strings=[stop], tokenizer=tokenizer)
    text = tokenizer.decode(out[0])
    assert text == free[: free.index(stop, 2) + 2]


def test_greedy_copies_are_announced(small_model):
    with pytest.warns(UserWarning, match="do_sample"):
        out = small_model.generate([1], num_return_sequences=3, max_new_tokens=3)
    assert len({tuple(row) for row in out.tolist()}) == 1


def test_each_sequence_by_itself_has_no_padding(small_model):
    options = {"max_new_tokens": 25, "do_sample": True, "eos_token_id": 7, "seed": 1}
    options |= {"num_return_sequences": 3, "pad_token_id": 3}
    prompts = [[1, 2, 5], [4]]
    padded = small_model.generate(prompts, **options)
    each = generate_each(small_model, prompts, **options)
    assert len({len(sequence) for sequence in each}) > 1  # otherwise the seed shows nothing
    for index, (row, sequence) in enumerate(zip(padded, each, strict=True)):
        padding = 0 if index < 3 else 2
        assert row[padding : padding + len(sequence)].tolist() == sequence.tolist()
        assert set(row[padding + len(sequence) :].tolist()) <= {3}
        assert len(sequence) == padded.shape[1] - padding or sequence[-1] == 7


def test_a_prompt_that_fills_the_context_comes_back(small_model):
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}
    with pytest.warns(LengthWarning):
        out = small_model.generate(list(range(32)), **options)
    assert out.tolist() == [list(range(32))] * 3


def test_an_end_of_text_token_that_the_vocabulary_lacks_ends_nothing(small_model):
    expected = small_model.generate([1, 2]).tolist()
    small_model.config.eos_token_id = 50256
    assert small_model.generate([1, 2], min_new_tokens=3).tolist() == expected
    assert small_model.generate([[1, 2], [3]]).shape == (2, 22)
    small_model.config.eos_token_id = [50256, expected[0][5]]
    whole = expected[0]
    assert small_model.generate([1, 2]).tolist() == [whole[: whole.index(whole[5], 2) + 1]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(small_model, temperature):
    expected = small_model.generate([1, 2]).tolist()
    out = small_model.generate([1, 2], do_sample=True, temperature=temperature, seed=0)
    assert out.tolist() == expected


def test_ids_beyond_the_tokenizer_are_not_chosen(small_model):
    tokenizer = CharTokenizer(list("abc"))
    out = small_model.generate([0], max_new_tokens=30, tokenizer=tokenizer)
    assert out.max() < 3


def test_logits_that_are_no_numbers_choose_nothing(small_model):
    small_model.parameters["ln_f.weight"][:] = np.nan
    with pytest.raises(ValueError, match="its weights are damaged"):
        small_model.generate([1, 2])
