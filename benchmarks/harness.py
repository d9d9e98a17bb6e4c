"""Two processes for a row, one for each side, that take turns: one run here, one run there.

A machine that is busy for a while then slows both. Each answers with its time and its peak memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

PAUSE = 0.1  # seconds; after a run, a library's threads wait busily for a while before they sleep
ROOT = Path(__file__).parents[1]


class Result(NamedTuple):
    seconds: float  # the median
    peak: float  # MB


def measure(name: str, runs: int, environment: dict[str, str]) -> dict[str, Result]:
    """Run both sides of a row in turn."""
    workers = {
        side: subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "--worker", side, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        for side in ("numgpt", "other")
    }
    for side, process in workers.items():
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"the {side} side of {name} failed: see above")
    answers = {side: [] for side in workers}
    for _ in range(runs):
        for side, process in workers.items():
            time.sleep(PAUSE)
            process.stdin.write("\n")
            process.stdin.flush()
            answers[side].append(json.loads(process.stdout.readline()))
    for process in workers.values():
        process.stdin.close()
        process.wait()
    return {
        side: Result(statistics.median(t for t, _ in runs), max(m for _, m in runs))
        for side, runs in answers.items()
    }


def serve(side: str, name: str) -> None:
    """A worker: prepare a side, then run it once for every line on stdin and answer."""
    prepare(side, numpy_only=name.endswith("-products"))
    from benchmarks.minbpe import Estimate
    from benchmarks.rows import ROWS

    row = ROWS[name]
    run = getattr(row, side)()
    if row.runs > 1:
        run()  # warm up
    reset_peak_memory()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(row.repeats):
            result = run()
        seconds = (time.perf_counter() - began) / row.repeats
        if isinstance(result, Estimate):
            seconds = result.seconds
        print(json.dumps([seconds, peak_memory()]), flush=True)


def prepare(side: str, numpy_only: bool = False) -> None:
    """Threads and kernels as the environment asks for them, before anything is imported."""
    threads = int(os.environ["BENCHMARK_THREADS"])
    if side == "numgpt" or numpy_only:
        if os.environ.get("BENCHMARK_KERNELS") == "numpy":
            import numpy  # noqa: F401  (first, so that numgpt can't choose the kernels any more)
        import numgpt

        numgpt.set_num_threads(threads)
    else:
        os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):  # not Linux: the peak then includes the preparation
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> float:
    """MB resident now; NaN where the system doesn't tell."""
    return _status("VmRSS")


def peak_memory() -> float:
    """MB resident at most since the reset."""
    peak = _status("VmHWM")
    if peak == peak:
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _status(field: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1e3
    return float("nan")
