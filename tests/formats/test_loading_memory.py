"""Loading takes the memory of the parameters, and that of one tensor more: not twice the model."""

from __future__ import annotations

import gc
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

from numgpt import GPT, GPTConfig, Llama, LlamaConfig, Tokenizer, runtime
from numgpt.formats import load_model
from numgpt.formats.crc32c import crc32c

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
    runtime.release_scratch()
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
