"""Weights mapped in their file, or read from it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from models.references import small_model

from numgpt import GPT, AdamW, CharTokenizer, GPTConfig, LoRAConfig, load


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


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's /proc")
def test_a_mapped_base_stays_mapped_while_its_adapter_trains(tmp_path):
    """No page of the file is copied: gradients, moments and updates are the adapter's alone."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, n_positions=32, vocab_size=500)
    GPT(config).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    model.add_adapter(LoRAConfig(r=2, target_modules="all-linear"))
    optimizer = AdamW(model, lr=1e-2)
    ids = np.random.default_rng(0).integers(500, size=(2, 17))
    for _ in range(3):
        _, gradients = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        optimizer.step()
    assert copied_bytes(tmp_path) == 0
    assert set(gradients) == set(model.adapter.parameters)
    assert optimizer.m.nbytes == model.adapter.parameters.nbytes
    model.merge_adapter()  # changes weights: now there are copies
    assert copied_bytes(tmp_path) > 0


def copied_bytes(directory) -> int:
    """Of a file's mapping, what is in memory of this process's own."""
    found, total = False, 0
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.split()[0]:  # the mapping's addresses, and its file
                found = str(directory) in line
            elif found and line.startswith("Anonymous:"):
                total += int(line.split()[1]) * 1024
    return total
