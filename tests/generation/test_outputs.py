"""Scores, logits and processors of a caller's own; how probable given continuations are."""

import numpy as np
import pytest
from models.references import small_model, their_generation, to_transformers

from numgpt.generation import GenerateOutput, generate
from numgpt.layers import softmax_forward


def test_what_tokens_are_chosen_by():
    model = small_model("default")
    prompt = [1, 2, 3]
    options = {"max_new_tokens": 5, "do_sample": True, "top_k": 4, "seed": 2, "temperature": 0.5}
    kept = {"output_scores": True, "output_logits": True}
    found = generate(model, prompt, return_dict_in_generate=True, **options, **kept)
    assert isinstance(found, GenerateOutput)
    assert found.sequences.tolist() == model.generate(prompt, **options).tolist()
    assert found.sequences_scores is None
    steps = zip(found.logits, found.scores, found.sequences[0, 3:], strict=True)
    for number, (logits, scores, token) in enumerate(steps):
        assert np.count_nonzero(scores[0] > -np.inf) == 4
        assert scores[0, token] > -np.inf
        np.testing.assert_allclose(
            logits[0], model(found.sequences[:, : 3 + number])[0, -1], rtol=1e-4, atol=1e-6
        )
        possible = scores[0] > -np.inf
        by_hand = 2 * logits[0, possible]
        np.testing.assert_allclose(
            softmax_forward(scores[0, possible])[0], softmax_forward(by_hand)[0], rtol=1e-4
        )
    plain = generate(model, prompt, return_dict_in_generate=True, max_new_tokens=2)
    assert plain.scores is None
    assert plain.logits is None


def test_of_a_sequence_that_has_ended_only_padding_is_possible():
    model = small_model("default")
    first = int(model.generate([5, 6], max_new_tokens=1)[0, -1])
    options = {"eos_token_id": first, "pad_token_id": 9, "max_new_tokens": 4}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    found = generate(model, [[5, 6], [1, 2]], **options)
    assert len(found.scores) == found.sequences.shape[1] - 2 > 1
    for scores in found.scores[1:]:
        assert np.flatnonzero(scores[0] > -np.inf).tolist() == [9]


@pytest.mark.live("torch", "transformers")
def test_scores_equal_transformers():
    model = small_model("default")
    theirs = to_transformers(model).eval()
    options = {"max_new_tokens": 6, "repetition_penalty": 1.4, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True, "eos_token_id": None}
    ours = model.generate([[1, 2], [3, 4]], **options | {"eos_token_id": []})
    given = {"do_sample": False, "pad_token_id": 0}
    expected = their_generation(theirs, [[1, 2], [3, 4]], **given, **options)
    assert ours.sequences.tolist() == expected.sequences.tolist()
    for name in ("scores", "logits"):
        pairs = zip(getattr(ours, name), getattr(expected, name), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def test_processors_of_a_callers_own():
    model, seen = small_model("default"), []

    def only_even(ids, logits):
        seen.append(ids)
        return np.where(np.arange(logits.shape[1]) % 2, -np.inf, logits)

    def not_twice(ids, logits):
        for row, last in zip(logits, ids[:, -1], strict=True):
            row[last] = -np.inf
        return logits

    made = model.generate(
        [[5], [1, 2]], max_new_tokens=6, logits_processor=[only_even, not_twice], pad_token_id=3
    )[:, 2:]
    assert not (made % 2).any()
    assert (made[:, 1:] != made[:, :-1]).all()
    assert seen[0].tolist() == [[3, 5], [1, 2]]
    # What samples comes after them: of two tokens that are possible, top_k=1 leaves the likelier.
    options = {"do_sample": True, "top_k": 1, "logits_processor": [only_even], "seed": 1}
    sampled = model.generate([1, 2], max_new_tokens=3, **options)
    likeliest = model.generate([1, 2], max_new_tokens=3, logits_processor=[only_even])
    assert sampled.tolist() == likeliest.tolist()


def test_no_ngram_twice():
    model = small_model("default")
    made = model.generate([1, 2], max_new_tokens=8, no_repeat_ngram_size=1)[0].tolist()
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", ["default", "llama_grouped"])
def test_continuations_are_scored(name):
    model = small_model(name, dtype=np.float64)
    context = [3, 1, 4, 1]
    greedy = model.generate(context, max_new_tokens=3)[0, 4:]
    continuations = [[5], [9, 2, 6], greedy, [5, 3]] * 5
    scores = model.score(context, continuations)
    for ids, score in zip(continuations, scores, strict=True):
        whole = np.concatenate([context, ids])
        expected = model.log_probs(whole[:-1], whole[1:])[0, 3:]
        np.testing.assert_allclose(score.token_logprobs, expected, rtol=1e-10)
        assert score.logprob == pytest.approx(expected.sum(), rel=1e-10)
        assert score.is_greedy == (list(ids) == list(greedy[: len(ids)]))
    assert model.score([3], [[1]])[0].logprob == pytest.approx(model.log_probs([3], [1])[0, 0])


def test_continuations_as_long_as_the_context_allows():
    model = small_model("default")
    length = model.context_length
    assert len(model.score([1], [[2] * length])[0].token_logprobs) == length
    with pytest.raises(ValueError, match=f"a context of 2 tokens and a continuation of {length}"):
        model.score([1, 2], [[2] * length])
