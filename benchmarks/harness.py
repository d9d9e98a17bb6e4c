"""Two processes for a row, one for each side, that take turns: one run here, one run there.

A machine that is busy for a while then slows both. Each answers with its time and its peak memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks.process import ROOT, Estimate, peak_memory, prepare, reset_peak_memory

PAUSE = 0.1  # seconds; after a run, a library's threads wait busily for a while before they sleep
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
    prepare(side, ours=name.endswith(("-products", "-joined")))
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
