"""Weights mapped in their file, or read from it."""

from __future__ import annotations

import numpy as np
import pytest
from models.references import small_model

from numgpt import GPT, CharTokenizer, load


@pytest.fixture
def directory(tmp_path):
    model = small_model("default")
    model.save_pretrained(tmp_path)
    characters = [chr(48 + i) for i in range(model.config.vocab_size)]
    CharTokenizer(characters).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_that_is_read_does_not_need_its_file(directory):
    mapped, read = load(directory)[0], load(directory, mmap=False)[0]
    np.testing.assert_array_equal(mapped.parameters["wte"], read.parameters["wte"])
    del mapped
    with open(directory / "model.safetensors", "r+b") as file:
        file.truncate(100)  # a mapped one would end the process
    assert np.isfinite(read([1, 2, 3])).all()


def test_from_pretrained_takes_it_too(directory):
    model = GPT.from_pretrained(directory, mmap=False)
    (directory / "model.safetensors").write_bytes(b"")
    assert np.isfinite(model([1])).all()
