"""Two processes for a row, one for each side, that take turns: one run here, one run there.

A machine that is busy for a while then slows both. Each answers with its time and its peak memory.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PAUSE = 0.1  # seconds; after a run, a library's threads wait busily for a while before they sleep
ROOT = Path(__file__).parents[1]
# Where the others read their number of threads: OpenMP's, tokenizers, JAX.
THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NPROC")
PACKAGES = {"llama_cpp": "llama-cpp-python"}  # what to install where it isn't called as its module


class Side(NamedTuple):
    """One of the two processes: whose work it does, and in what environment."""

    name: str  # "numgpt" or "other", the field of a row
    environment: dict[str, str]


class Result(NamedTuple):
    """What the runs of one side took, in turn."""

    times: list[float]  # seconds
    peak: float  # MB

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)


class MissingError(Exception):
    """The other side's package is not installed."""


def measure(name: str, runs: int, sides: tuple[Side, Side]) -> tuple[Result, Result]:
    """Run both sides of a row in turn.  Raises MissingError."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks", "--worker", side.name, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | side.environment,
        )
        for side in sides
    ]
    for side, process in zip(sides, workers, strict=True):
        answer, _, module = process.stdout.readline().strip().partition(" ")
        if answer == "missing":
            for other in workers:
                other.communicate()  # it gets no line, and ends
            raise MissingError(PACKAGES.get(module, module))
        if answer != "ready":
            raise SystemExit(f"the {side.name} side of {name} failed: see above")
    answers = ([], [])
    for _ in range(runs):
        for process, mine in zip(workers, answers, strict=True):
            time.sleep(PAUSE)
            process.stdin.write("\n")
            process.stdin.flush()
            mine.append(json.loads(process.stdout.readline()))
    for process in workers:
        process.stdin.close()
        process.wait()
    ours, theirs = (Result([t for t, _ in all], max(m for _, m in all)) for all in answers)
    return ours, theirs


def serve(side: str, name: str) -> None:
    """A worker: prepare a side, then run it once for every line on stdin and answer."""
    prepare(side, numpy_only=name.endswith("-products"))
    from benchmarks.minbpe import Estimate
    from benchmarks.rows import ROWS

    row = ROWS[name]
    try:
        run = getattr(row, side)()
    except ModuleNotFoundError as error:
        if side == "numgpt":
            raise
        return print("missing", error.name)
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
    if checkout := os.environ.get("BENCHMARK_CHECKOUT"):
        sys.path.insert(0, checkout)
    if side == "numgpt" or numpy_only:
        if os.environ.get("BENCHMARK_KERNELS") == "numpy":
            import numpy  # noqa: F401  (first, so that numgpt can't choose the kernels any more)
        import numgpt

        if checkout and not Path(numgpt.__file__).is_relative_to(checkout):
            raise SystemExit(f"{checkout} holds no numgpt, {numgpt.__file__} was imported")
        numgpt.set_num_threads(threads)
    else:
        os.environ |= dict.fromkeys(THREADS, str(threads))


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process of its own: what it imports stays out of this one, and
    its memory doesn't count.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


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
