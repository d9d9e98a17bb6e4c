"""Beam search: against transformers, and against all continuations that there are."""

import itertools
from typing import Any

import numpy as np
import pytest
from models.references import small_model, their_generation, to_transformers
from support import GOLDENS

from numgpt import GPT, GPTConfig
from numgpt.generation import GenerateOutput, LengthWarning, generate_each


def search(model, ids, **options) -> GenerateOutput:
    return model.generate(ids, **{"num_beams": 3, "return_dict_in_generate": True} | options)


@pytest.fixture(scope="module")
def tiny():
    """Few words, and one of them likely to end a text."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=12, vocab_size=5)
    return GPT(config, seed=4, dtype=np.float64)


def logp_of(model, prompt, made):
    ids = np.concatenate([prompt, made])
    return float(model.log_probs(ids[:-1], ids[1:])[0, len(prompt) - 1 :].sum())


def test_beams_enough_find_the_most_probable_of_all(tiny):
    tiny.parameters["wte"][:] *= 40
    prompt = [1, 2]
    of_all = {made: logp_of(tiny, prompt, made) for made in itertools.product(range(5), repeat=3)}
    best = sorted(of_all, key=of_all.get, reverse=True)[:4]
    options = {"num_beams": 125, "num_return_sequences": 4, "max_new_tokens": 3, "eos_token_id": []}
    found = search(tiny, prompt, length_penalty=0.5, **options)
    assert [tuple(row[2:]) for row in found.sequences.tolist()] == best
    expected = [of_all[made] / 3**0.5 for made in best]
    np.testing.assert_allclose(found.sequences_scores, expected, rtol=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0, -1.0])
def test_what_ends_is_scored_by_its_length(tiny, penalty):
    """Wide beams and early_stopping="never": the best of all continuations that end."""
    end, prompt = 3, [1, 2]
    scores = {}
    for length in (1, 2, 3):
        for made in itertools.product(range(5), repeat=length):
            if end not in made[:-1] and (made[-1] == end or length == 3):
                scores[made] = logp_of(tiny, prompt, made) / length**penalty
    best = sorted(scores, key=scores.get, reverse=True)[:2]
    options = {"num_beams": 200, "num_return_sequences": 2, "early_stopping": "never"}
    options |= {"max_new_tokens": 3, "eos_token_id": end, "pad_token_id": 0}
    found = search(tiny, prompt, length_penalty=penalty, **options)
    for row, made in zip(found.sequences.tolist(), best, strict=True):
        assert tuple(row[2 : 2 + len(made)]) == made
        assert not any(row[2 + len(made) :])  # padding
    np.testing.assert_allclose(found.sequences_scores, [scores[made] for made in best], rtol=1e-12)


def test_one_beam_is_greedy_decoding():
    model = small_model("default")
    ids = model.generate([[1, 2], [3, 4]], max_new_tokens=6)
    assert model.generate([[1, 2], [3, 4]], max_new_tokens=6, num_beams=1).tolist() == ids.tolist()


def test_prompts_of_a_batch_are_searched_by_themselves(tiny):
    options = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "eos_token_id": 3}
    together = generate_each(tiny, [[1], [2, 1, 4]], **options)
    alone = [row for prompt in ([1], [2, 1, 4]) for row in generate_each(tiny, [prompt], **options)]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]


def test_the_context_ends_a_search(tiny):
    with pytest.warns(LengthWarning):
        found = search(tiny, [1] * 10, max_new_tokens=9, eos_token_id=[])
    assert found.sequences.shape == (1, 12)
    with pytest.warns(LengthWarning):
        assert search(tiny, [1] * 12, max_new_tokens=9).sequences.tolist() == [[1] * 12]


# --- against transformers ---

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 2.0},
    "short": {"length_penalty": -1.0},
    "canonical": {"length_penalty": 0.0, "early_stopping": "never"},
    "repeats": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "banned": {"bad_words_ids": [[3], [5, 6]], "min_new_tokens": 3},
}
CASES = [f"{name} {option}" for name in ("default", "llama_grouped") for option in OPTIONS]
COMMON = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 3}
COMMON |= {"eos_token_id": [7, 36], "pad_token_id": 1, "return_dict_in_generate": True}
SEEDS = range(4)


def inputs(case: str):
    """model, prompts (8, 3), options."""
    name, option = case.split()
    model = small_model(name)
    for array in model.parameters.values():  # differences that rounding does not bridge
        array *= 3 if array.ndim == 2 else 1
    prompts = [np.random.default_rng(seed).integers(36, size=(2, 3)) for seed in SEEDS]
    return model, np.concatenate(prompts), COMMON | OPTIONS[option]


def ours(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (24, T'), and their scores (24,)."""
    model, prompts, options = inputs(case)
    found = model.generate(prompts, **options)
    return found.sequences, found.sequences_scores


def theirs(case: str) -> tuple[np.ndarray, np.ndarray]:
    model, prompts, options = inputs(case)
    other = to_transformers(model).eval()
    found = their_generation(other, prompts, output_scores=True, **options)
    return found.sequences.numpy(), found.sequences_scores.numpy()


def record() -> dict[str, np.ndarray]:
    results = {case: theirs(case) for case in CASES}
    answers = {f"{case}/sequences": sequences for case, (sequences, _) in results.items()}
    return answers | {f"{case}/scores": scores for case, (_, scores) in results.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_and_scores_equal_recorded_transformers(case):
    sequences, scores = ours(case)
    with np.load(GOLDENS / "beams.npz") as goldens:
        assert sequences.tolist() == goldens[f"{case}/sequences"].tolist()
        np.testing.assert_allclose(scores, goldens[f"{case}/scores"], rtol=1e-4)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sequences_and_scores_equal_transformers(case):
    sequences, scores = ours(case)
    expected, expected_scores = theirs(case)
    assert sequences.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)
