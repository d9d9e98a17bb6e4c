"""How time and memory grow: a training step with its tokens, decoding with its context.

Everything is GPT-2's size (124M). A training step has sequences of 64 tokens, so that more tokens
are more sequences. Forward, backward and loss do the same for each of them, and AdamW's work comes
once. So its time is a + b · tokens, and so is its memory. A decoded token goes through all weights
once and through the keys and values of its context: a + b · context.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.process import ROOT, peak_memory, prepare, reset_peak_memory, resident_memory

POINTS = {
    "step": (64, 128, 256, 512, 1024, 2048, 4096),
    "decode": (1, 64, 128, 256, 512, 768, 1024),
}
SWEEPS = {"step": 1, "decode": 3}  # what takes milliseconds is measured more often
TIME = 64
RESULTS = Path(__file__).with_name("growth.json")


def main(threads: int) -> None:
    """Measure every point in a process of its own, and write the results."""
    os.environ["BENCHMARK_THREADS"] = str(threads)
    results = {study: sweep(study) for study in POINTS}
    lines = (f' "{study}": {json.dumps(sides)}' for study, sides in results.items())
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def sweep(study: str) -> dict[str, list[list[float]]]:
    """side -> [x, seconds, MB] for each x; medians of some sweeps over all points."""
    measured = {side: {x: [] for x in POINTS[study]} for side in ("numgpt", "other")}
    for _ in range(SWEEPS[study]):
        for x in POINTS[study]:  # the sides take turns
            for side, points in measured.items():
                points[x].append(point(study, side, x))
    return {
        side: [[x, *map(statistics.median, zip(*points[x], strict=True))] for x in points]
        for side, points in measured.items()
    }


def point(study: str, side: str, x: int) -> tuple[float, float]:
    """Seconds and MB."""
    command = [sys.executable, "-m", "benchmarks", "--point", study, side, str(x)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    print(study, side, x, done.stdout.strip(), flush=True)
    return json.loads(done.stdout)


def serve_point(study: str, side: str, x: str) -> None:
    """Measure one point in this process, and print its seconds and MB."""
    prepare(side)
    run = {"step": step, "decode": decode}[study](side, int(x))
    run()
    reset_peak_memory()
    seconds = []
    for _ in range(3 if study == "step" else 15):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    memory = peak_memory() if study == "step" else resident_memory()
    print(json.dumps([statistics.median(seconds), memory]))


def step(side: str, tokens: int) -> Callable[[], None]:
    from benchmarks.training import GPT2, numgpt_step, torch_step

    make = numgpt_step if side == "numgpt" else torch_step
    return make(GPT2, tokens // TIME, TIME)


def decode(side: str, context: int) -> Callable[[], object]:
    """One more token after context - 1 of them, whose keys and values are drawn at random."""
    if side == "numgpt":
        return numgpt_decode(context)
    import torch
    import transformers

    from benchmarks.generating import transformers_model

    model, config = transformers_model(), transformers.GPT2Config()
    size = config.n_embd // config.n_head

    def run() -> object:
        with torch.inference_mode():
            return model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache).logits

    def crop() -> object:
        logits = run()
        cache.crop(-1)
        return logits

    cache = transformers.DynamicCache()
    if context > 1:
        for layer in range(config.n_layer):
            past = torch.randn(1, config.n_head, context - 1, size)
            cache.update(past, past.clone(), layer)
        return crop

    def first() -> object:
        nonlocal cache
        cache = transformers.DynamicCache()
        return run()

    return first


def numgpt_decode(context: int) -> Callable[[], object]:
    import numgpt
    from benchmarks.generating import numgpt_model

    model = numgpt_model()
    cache = numgpt.KVCache(model, batch=1, capacity=context)
    for array in (cache.keys, cache.values):
        array.fill(0.5)
    ids = model.check_ids([1])

    def run() -> object:
        cache.lengths[:] = context - 1
        x = model.hidden(ids, cache.view(ids.shape[1]), last_only=True)
        return model.unembedding.logits(x)

    return run
