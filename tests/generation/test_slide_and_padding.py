"""What generate does beyond one context, and what padding must not do."""

import warnings

import numpy as np
import pytest
from models.references import small_model
from support import clear

from numgpt import GPT, GPTConfig
from numgpt.generation import LengthWarning, process_logits
from numgpt.generation.options import GenerationOptions

MODELS = ("default", "llama_grouped")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt_length", [1, 5, 200])
def test_a_full_context_goes_on_from_its_newer_half(name, prompt_length):
    model = clear(small_model(name), seed=3)
    context = model.context_length
    kept = context // 2
    prompt = np.random.default_rng(0).integers(model.config.vocab_size, size=prompt_length)
    ids = model.generate(prompt, max_new_tokens=3 * context, slide=True, eos_token_id=[])[0]
    expected, first = list(prompt), 0
    if prompt_length > context:
        first = prompt_length - kept
    while len(expected) < prompt_length + 3 * context:
        if len(expected) - first > context:
            first = len(expected) - kept
        expected.append(int(model(np.array(expected[first:]))[0, -1].argmax()))
    np.testing.assert_array_equal(ids, expected)


def test_without_slide_the_context_ends_it():
    model = clear(small_model("default"), seed=3)
    context = model.context_length
    with pytest.warns(LengthWarning, match=f"{context} tokens"):
        ids = model.generate([1, 2], max_new_tokens=500, eos_token_id=[])
    assert ids.shape == (1, context)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate([1, 2], max_length=context)
        model.generate([1, 2], max_new_tokens=50, eos_token_id=[], slide=True)


@pytest.mark.parametrize("penalty", [0.5, 1.7])
def test_padding_has_not_occurred(penalty):
    """Each row of a padded batch is what it is alone, whatever its padding is made of."""
    model = clear(small_model("default"), seed=3)
    rng = np.random.default_rng(1)
    for pad in range(0, model.config.vocab_size, 5):
        prompts = [rng.integers(model.config.vocab_size, size=n).tolist() for n in (5, 2, 1)]
        request = {"max_new_tokens": 6, "repetition_penalty": penalty, "eos_token_id": []}
        together = model.generate(prompts, pad_token_id=pad, **request)
        for row, prompt in zip(together, prompts, strict=True):
            alone = model.generate(prompt, **request)[0]
            np.testing.assert_array_equal(row[5 - len(prompt) :], alone)
        padded = np.full((3, 5), pad)
        mask = np.zeros((3, 5), int)
        for row, real, prompt in zip(padded, mask, prompts, strict=True):
            row[5 - len(prompt) :], real[5 - len(prompt) :] = prompt, 1
        masked = model.generate(padded, attention_mask=mask, pad_token_id=pad, **request)
        np.testing.assert_array_equal(masked, together)


def test_banned_words_do_not_begin_in_padding():
    logits = np.zeros((1, 4), np.float32)
    options = GenerationOptions(bad_words_ids=[[0, 2]])
    assert np.isneginf(process_logits(logits, np.array([[0]]), options)[0, 2])
    assert not np.isneginf(process_logits(logits, np.array([[-1]]), options)).any()


@pytest.mark.parametrize("penalty", [1e-300, 1e-38, 1e30, 1e300])
@pytest.mark.parametrize("do_sample", [False, True])
def test_extreme_penalties_leave_numbers(penalty, do_sample):
    model = clear(small_model("default"), seed=3)
    with np.errstate(all="raise", under="ignore"):
        ids = model.generate(
            [1, 2], max_new_tokens=8, repetition_penalty=penalty, do_sample=do_sample, seed=1
        )
    assert ids.shape == (1, 10)


UNKNOWN = {
    "max_tokens": "the nearest is max_new_tokens",
    "temprature": "the nearest is temperature",
    "stop": "the nearest is stop_strings",
    "nonsense_of_mine": "there are max_length",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_options_say_which_is_meant(name):
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=8, vocab_size=5))
    for call in (model.generate, model.stream):
        with pytest.raises(TypeError, match=f"generate.* {name}") as error:
            call([1], **{name: 1})
        assert UNKNOWN[name] in str(error.value)
        assert "GenerationOptions" not in str(error.value)
