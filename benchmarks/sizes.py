"""All sizes of GPT-2 with random weights: load them, generate, and see what memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process import ROOT, peak_memory

SIZES = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
DTYPES = ("float32", "bfloat16")
TOKENS = 16


def main(threads: int) -> None:
    print("| model | stored as | weights in memory | load | tokens/s | peak memory | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in SIZES:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as directory:
                call("write", name, dtype, directory, threads)
                facts = call("generate", name, dtype, directory, threads)
            print(
                f"| {name} | {dtype} | {facts['weights']:,.0f} MB | {facts['load']:.2f} s"
                f" | {facts['speed']:.1f} | {facts['peak']:,.0f} MB"
                f" | {facts['peak'] / facts['weights']:.3f} |",
                flush=True,
            )


def call(task: str, name: str, dtype: str, directory: str, threads: int) -> dict[str, float]:
    """In a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.sizes", task, name, dtype, directory]
    environment = os.environ | {"NUMGPT_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def serve(task: str, name: str, dtype: str, directory: str) -> None:
    import numgpt

    if task == "write":
        numgpt.GPT(numgpt.GPTConfig(**SIZES[name])).save_pretrained(Path(directory), dtype)
        print("{}")
        return
    began = time.perf_counter()
    model = numgpt.GPT.from_pretrained(directory)
    load = time.perf_counter() - began
    prompt = list(range(8))
    model.generate(prompt, max_new_tokens=2)
    began = time.perf_counter()
    model.generate(prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, eos_token_id=50256)
    speed = TOKENS / (time.perf_counter() - began)
    weights = model.parameters.flat.nbytes / 1e6
    facts = {"weights": weights, "load": load, "speed": speed, "peak": peak_memory()}
    print(json.dumps(facts))


if __name__ == "__main__":
    serve(*sys.argv[1:])
