"""Weights are mapped in their file, or read from it: loading takes the memory of the parameters,
and that of one tensor more, not twice the model."""

import gc
import os
import tracemalloc

import numpy as np
import pytest
from formats import tensorflow_writer
from formats.gguf_writer import gguf_file, metadata_of, random_blocks, tensors_of
from formats.source_writers import (
    llmc_checkpoint,
    nanogpt_checkpoint,
    save_torch,
    write_openai,
    write_pickled_directory,
)
from models.references import small_model

from numgpt import (
    GPT,
    AdamW,
    CharTokenizer,
    GPTConfig,
    Llama,
    LlamaConfig,
    LoRAConfig,
    Tokenizer,
    load,
)
from numgpt.formats import load_model
from numgpt.formats.crc32c import crc32c
from numgpt.runtime import scratch

GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 8, "vocab_size": 300}
LLAMA = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "vocab_size": 300}
LLAMA |= {"intermediate_size": 96}
# Each has one tensor, or one kind of tensor, much larger than the others.
MODELS = {
    "table": lambda: GPT(GPTConfig(**(GPT2 | {"vocab_size": 64_000}))),
    "matrix": lambda: GPT(GPTConfig(**(GPT2 | {"n_inner": 32_000}))),
    "llama of many keys": lambda: Llama(LlamaConfig(**LLAMA, head_dim=8_000)),
}
ANY, SIZED = list(MODELS), ["table"]  # the others' inner width is always 4 · n_embd


def write_q8_0(directory, model):
    tensors, rng = [], np.random.default_rng(0)
    for name, kind, shape, raw in tensors_of(model):
        if len(shape) == 2:
            kind, raw = "Q8_0", random_blocks("Q8_0", int(np.prod(shape)) // 32, rng).tobytes()
        tensors.append((name, kind, shape, raw))
    (directory / "model.gguf").write_bytes(gguf_file(metadata_of(model), tensors))


WRITERS = {
    "pytorch_model.bin": (lambda d, m: write_pickled_directory(d, m, np.float16), ANY),
    "safetensors": (lambda d, m: m.save_pretrained(d, "bfloat16"), ANY),
    "GGUF": (write_q8_0, ANY),
    "OpenAI": (lambda d, m: write_openai(d, m, Tokenizer.train("hen", 257)), SIZED),
    "nanoGPT": (lambda d, m: save_torch(d / "ckpt.pt", nanogpt_checkpoint(m)), SIZED),
    "llm.c": (lambda d, m: (d / "m.bin").write_bytes(llmc_checkpoint(m, 5)), SIZED),
}


@pytest.mark.parametrize(
    ("source", "name"), [(source, name) for source in WRITERS for name in WRITERS[source][1]]
)
def test_loading_needs_one_tensor_more_than_the_model(tmp_path, monkeypatch, source, name):
    # The writer's own checksum is the definition, bit by bit: too slow for megabytes.
    monkeypatch.setattr(tensorflow_writer, "plain_crc32c", crc32c)
    model = MODELS[name]()
    largest = max(array.nbytes for array in model.parameters.values())
    everything = model.parameters.flat.nbytes
    assert largest > 0.1 * everything
    WRITERS[source][0](tmp_path, model)
    del model
    load_model(tmp_path)  # what is imported or cached on first use is no part of it
    scratch._pool.release()
    gc.collect()
    tracemalloc.start()
    try:
        loaded = load_model(tmp_path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded.parameters.flat.nbytes == everything
    assert everything <= kept
    assert peak < everything + 1.3 * largest + 1_000_000  # blocks at work, rounded buffers


# --- mapped ---


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
