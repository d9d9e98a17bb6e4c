"""Resident memory over 1000 training steps: it must not grow."""

from __future__ import annotations

from benchmarks.harness import resident_memory

STEPS = 1000


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
