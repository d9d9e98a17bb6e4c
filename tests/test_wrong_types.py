"""What is of another type than it should be is told in one line that says what to pass."""

from __future__ import annotations

import pytest

import numgpt
from numgpt import GPT, AdamW, Chat, GPTConfig, load, set_num_threads

MODEL = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=99))

CALLS = {
    "a config that is a dict": (lambda: GPT({"n_layer": 1}), "GPT is made of a GPTConfig"),
    "a model that is a number": (lambda: load(5), "the model is 5: name a directory"),
    "no model": (lambda: load(None), "the model is None: name a directory"),
    "threads in words": (lambda: set_num_threads("two"), "threads='two': expected"),
    "half a thread": (lambda: set_num_threads(1.5), "threads=1.5: expected"),
    "lr in words": (lambda: AdamW(MODEL, lr="fast"), "lr='fast': expected 0 or more"),
    "lr nan": (lambda: AdamW(MODEL, lr=float("nan")), "lr=nan: expected 0 or more"),
    "eps of 0": (lambda: AdamW(MODEL, eps=0), "eps=0: expected a number above 0"),
    "one beta": (lambda: AdamW(MODEL, betas=0.9), "betas=0.9: expected two numbers"),
    "a beta of 1": (lambda: AdamW(MODEL, betas=(0.9, 1)), r"betas=\(0.9, 1\): expected two"),
    "a chat with nobody": (lambda: Chat(None, None), "made of a model and its tokenizer"),
    "ids that are none": (
        lambda: load("shakespeare")[1].decode(None),
        "a sequence of ids, not None",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_types(case):
    call, message = CALLS[case]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_learning_rate_that_was_set_wrong_changes_nothing():
    model = numgpt.GPT(MODEL.config)
    optimizer = AdamW(model)
    model.loss_and_grads([1, 2, 3], [2, 3, 4])
    before = model.parameters["wte"].copy()
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="lr=nan"):
        optimizer.step()
    assert optimizer.steps == 0
    assert (model.parameters["wte"] == before).all()
