"""numgpt against PyTorch, side by side:  python -m benchmarks [ROW ...]

Each row runs in a pair of processes, one for each side, that take turns: one run here, one run
there, and so on. A machine that is busy for a while then slows both. The table gives medians, their
ratio, and each process's peak memory while it ran. `python -m benchmarks --recipe` trains the char
recipe to its end on both sides instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.jobs import ROWS, Row

PAUSE = 0.1  # seconds; after a run, a BLAS's threads spin for a while before they sleep
ROOT = Path(__file__).parents[1]


def worker(side: str, name: str) -> None:
    """Prepare one side of a row, then run it once for every line on stdin and answer with the
    time."""
    limit_threads(side)
    run = getattr(ROWS[name], side)()
    run()  # warm up
    reset_peak_memory()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(ROWS[name].repeats):
            run()
        seconds = (time.perf_counter() - began) / ROWS[name].repeats
        print(json.dumps([seconds, peak_memory()]), flush=True)


def limit_threads(side: str) -> None:
    count = int(os.environ["BENCHMARK_THREADS"])
    if side == "numgpt":
        import numgpt

        numgpt.set_num_threads(count)
    else:
        import torch

        torch.set_num_threads(count)


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):  # not Linux: the peak then includes the preparation
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """MB resident at most since the reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1e3
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return float("nan")


def measure(name: str, row: Row, threads: int) -> dict[str, tuple[float, float]]:
    """side -> median seconds, peak MB."""
    environment = os.environ | {
        "BENCHMARK_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    workers = {
        side: subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "--worker", side, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for side in ("numgpt", "other")
    }
    for side, process in workers.items():
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"the {side} side of {name} failed: see above")
    answers = {side: [] for side in workers}
    for _ in range(row.runs):
        for side, process in workers.items():
            time.sleep(PAUSE)
            process.stdin.write("\n")
            process.stdin.flush()
            answers[side].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    return {
        side: (statistics.median(t for t, _ in runs), max(m for _, m in runs))
        for side, runs in answers.items()
    }


def show(row: Row, seconds: float) -> str:
    if row.unit != "s":
        return f"{row.amount / seconds:.1f} {row.unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", action="store_true", help="train the char recipe to its end")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    if options.recipe:
        from benchmarks.recipe import compare

        compare(options.threads)
        return
    if unknown := set(options.rows) - ROWS.keys():
        parser.error(f"no row {min(unknown)}; there are {', '.join(ROWS)}")
    print("| work | numgpt | other | ratio | peak MB, numgpt | other |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.rows or ROWS:
        row = ROWS[name]
        results = measure(name, row, options.threads)
        (ours, our_peak), (theirs, their_peak) = results["numgpt"], results["other"]
        print(
            f"| {row.title} | {show(row, ours)} | {show(row, theirs)} | {theirs / ours:.2f}"
            f" | {our_peak:,.0f} | {their_peak:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
