"""log.jsonl, one JSON object a report, and loss.png where matplotlib is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from numgpt.runtime.files import replacing

LOG_FILE = "log.jsonl"
CURVE_FILE = "loss.png"


class Log:
    """The reports of a run, on disk as they come."""

    def __init__(self, directory: Path, keep_to_step: int = 0):
        """Keeps what an earlier part of the run reported up to `keep_to_step`, and nothing after
        it."""
        self.path = directory / LOG_FILE
        self.records: list[dict[str, Any]] = []
        if keep_to_step and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # cut short when the run was killed
                    continue
                if record["step"] <= keep_to_step:
                    self.records.append(record)
        with replacing(self.path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in self.records).encode())

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def plot(self) -> None:
        """Draw training and validation loss over the steps; without matplotlib, nothing."""
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5))
        for key, label in (("loss", "training"), ("val_loss", "validation")):
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
