"""Resident memory over 1000 training steps, then over 300 loads and generations: it must stay."""

from __future__ import annotations

from benchmarks.process import resident_memory

STEPS, LOADS = 1000, 300


def main(threads: int) -> None:
    import numgpt  # before the line below imports NumPy
    from benchmarks.training import CHAR, numgpt_step

    numgpt.set_num_threads(threads)
    step = numgpt_step(CHAR, 12, 64)
    print("| steps | resident MB |\n| --- | --- |")
    for number in range(1, STEPS + 1):
        step()
        if number in (1, 10) or number % 100 == 0:
            print(f"| {number} | {resident_memory():.1f} |", flush=True)
    print("| loads and generations | resident MB |\n| --- | --- |")
    for number in range(1, LOADS + 1):
        model, tokenizer = numgpt.load("shakespeare")
        prompts = [tokenizer.encode("To be, or"), tokenizer.encode("A")]
        model.generate(prompts, max_new_tokens=20, do_sample=True, seed=number)
        if number in (1, 10) or number % 50 == 0:
            print(f"| {number} | {resident_memory():.1f} |", flush=True)
