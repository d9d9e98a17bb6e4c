"""log.jsonl, one JSON object a report, and the curve that is drawn of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

from numgpt.files import naming, replacing

LOG_FILE = "log.jsonl"
DAMAGED_LOG_FILE = "log.damaged.jsonl"
CURVE_FILE = "loss.png"
CURVES = (("loss", "training"), ("val_loss", "validation"))


class Log:
    """The reports of a run, on disk as they come."""

    def __init__(self, directory: Path, keep_to_step: int = 0):
        """Keeps what an earlier part of the run reported up to `keep_to_step`, and nothing after
        it.  A log with lines that are no reports is set aside, with a warning."""
        self.path = directory / LOG_FILE
        records, damaged = _read(self.path) if self.path.is_file() else ([], 0)
        self.records = [record for record in records if record["step"] <= keep_to_step]
        if damaged:
            os.replace(self.path, self.path.with_name(DAMAGED_LOG_FILE))
            warnings.warn(
                f"{self.path} has lines that are no reports ({damaged}): it is kept as"
                f" {DAMAGED_LOG_FILE}, the log goes on with the others",
                stacklevel=2,
            )
        with replacing(self.path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in self.records).encode())

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def plot_curve(records: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss over the steps.  Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for key, label in CURVES:
        points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if points:
            marker = "." if key == "val_loss" else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The reports in a log, and how many lines are none (but for a last one without its end, which
    a kill has cut short)."""
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = [record for line in lines if (record := _report(line)) is not None]
    return records, len(lines) - len(records)


def _report(line: str) -> dict[str, Any] | None:
    """The record of a line; None where it is none that can be gone on with, and drawn."""
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError, OverflowError):
        record = json.loads(line)
        if type(record["step"]) is int:
            float(record["step"])
            [float(record[key]) for key, _ in CURVES if record.get(key) is not None]
            return dict(record)
    return None
