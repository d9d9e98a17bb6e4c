"""The process that is measured: its kernels and threads, its memory, and work done outside it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
# Where the others read their number of threads: OpenMP's, tokenizers, JAX.
THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NPROC")


class Estimate(NamedTuple):
    """What a row's run returns in place of being timed by the clock."""

    seconds: float


def prepare(side: str, ours: bool = False) -> None:
    """Threads and kernels as the environment asks for them, before anything is imported; `ours`
    where the other side, too, is made of numgpt or its NumPy."""
    threads = int(os.environ["BENCHMARK_THREADS"])
    if checkout := os.environ.get("BENCHMARK_CHECKOUT"):
        sys.path.insert(0, checkout)
    if side == "numgpt" or ours:
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
