"""log.jsonl, one JSON object a report, and loss.png where matplotlib is installed."""

from __future__ import annotations

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
            aside, number = self.path.with_name(DAMAGED_LOG_FILE), 1
            while os.path.lexists(aside):  # an earlier one, or somebody's, stays
                number += 1
                aside = aside.with_name(f"log.damaged.{number}.jsonl")
            os.replace(self.path, aside)
            warnings.warn(
                f"{self.path} has lines that are no reports ({damaged}): it is kept as"
                f" {aside.name}, the log goes on with the others",
                stacklevel=2,
            )
        with replacing(self.path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in self.records).encode())

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def plot(self) -> None:
        """Draw training and validation loss over the steps; without matplotlib, nothing."""
        if not can_plot():
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5))
        for key, label in CURVES:
            points = [
                (record["step"], record[key])
                for record in self.records
                if record.get(key) is not None
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    label=label,
                    marker="." if key == "val_loss" else None,
                )
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        figure.tight_layout()
        with replacing(self.path.with_name(CURVE_FILE)) as file:
            figure.savefig(file, format="png", dpi=120)
        plt.close(figure)


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The reports in a log, and how many lines are none (but for a last one without its end, which
    a kill has cut short)."""
    records, damaged = [], 0
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_report(record):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def _is_report(record: Any) -> bool:
    def is_number(value: Any) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 1 << 53)

    return (
        isinstance(record, dict)
        and type(record.get("step")) is int
        and all(record.get(key) is None or is_number(record[key]) for key, _ in CURVES)
    )
