"""Memory over many training steps: it must not grow."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from numgpt import GPT, AdamW, GPTConfig, runtime
from numgpt.models import data_parallel
from numgpt.runtime import scratch


@pytest.fixture
def one_thread():
    """Then what lives at the same time doesn't depend on how two threads happen to meet."""
    before = runtime.num_threads()
    runtime.set_num_threads(1)
    yield
    runtime.set_num_threads(before)


def test_memory_stays_flat_over_many_steps(monkeypatch, one_thread):
    monkeypatch.setattr(data_parallel, "worthwhile_threads", lambda work, extra: 2)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=65)
    model = GPT(config)
    optimizer = AdamW(model)
    rng = np.random.default_rng(0)

    def steps(rounds: int) -> None:
        for _ in range(rounds):
            for time in rng.permutation(64) + 1:  # every length, as a last batch or evaluation has
                ids, targets = rng.integers(65, size=(2, 4, time))
                model.loss_and_grads(ids, targets, rng)
                optimizer.step(grad_clip=1.0)
        gc.collect()

    tracemalloc.start()
    try:
        steps(1)  # every size of buffer has been seen
        pool = scratch._pool
        before = tracemalloc.get_traced_memory()[0], pool.used_bytes + pool.idle_bytes
        steps(2)
        after = tracemalloc.get_traced_memory()[0], pool.used_bytes + pool.idle_bytes
    finally:
        tracemalloc.stop()
    # A leaked activation of a step would be 128 times some 10 kB.
    assert after[0] - before[0] < 200_000
    assert after[1] - before[1] < 200_000
