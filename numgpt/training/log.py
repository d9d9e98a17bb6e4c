"""log.jsonl, one JSON object a report, and the curve that is drawn of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from numgpt.files import replacing
from numgpt.reading import naming

LOG_FILE = "log.jsonl"
DAMAGED_LOG_FILE = "log.damaged.jsonl"
CURVE_FILE = "loss.png"
CURVES = (("loss", "training"), ("val_loss", "validation"))
# What else a record has that is no metric, or grows by itself.
NO_METRICS = {"step", "loss", "val_loss", "lr", "grad_norm", "tokens_per_second", "num_tokens"}
NOT_OF_TOKENS = ("rewards/margins", "accuracy", "reward")  # metrics of losses of other things


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
    """Draw training and validation loss over the steps, and beside it a panel for each metric, or
    for those that begin alike (rewards/chosen, rewards/rejected).  Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(records)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    size = (7, 4.5) if len(panels) == 1 else (4.5 * across, 3 * down)
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for key, label in curves.items():
            points = [(r["step"], r[key]) for r in records if _is_number(r.get(key))]
            if points:
                marker = "." if key == "val_loss" else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker)
        name = next(iter(curves)) if len(curves) == 1 else title  # of one curve, its whole name
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1 or (axes.lines and len(panels) == 1):
            axes.legend(fontsize="small")
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


def _panels(records: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By its title what a panel shows: the names of numbers, and what they are called there."""
    panels = {"loss (nats per token)": dict(CURVES)}
    names = dict.fromkeys(name for record in records for name in record)
    if any(name in names for name in NOT_OF_TOKENS):
        panels = {"loss": dict(CURVES)}
    for name in names:
        group, _, rest = name.partition("/")
        if name not in NO_METRICS and any(_is_number(r.get(name)) for r in records):
            panels.setdefault(group, {})[name] = rest or name
    return panels


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


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
