"""What a run tells whoever started it: records, each of which is a line as a text.

`Trainer.run(report=print)` prints them; `report=Progress()` shows one line instead.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Note:
    """What was read, left out or changed."""

    message: str | Warning

    def __str__(self) -> str:
        return str(self.message)


# Of the metrics, the first that is there is shown beside the loss, and called so.
SHOWN = {"mean_token_accuracy": "accuracy", "accuracy": "accuracy", "rewards/margins": "margin"}
SHOWN |= {"reward": "reward"}


@dataclass(frozen=True)
class Report:
    """How it goes; one is a line of log.jsonl."""

    step: int
    steps: int  # in all
    loss: float  # the mean since the last report; of text and answers in nats per token
    val_loss: float | None
    lr: float
    grad_norm: float  # before clipping
    tokens_per_second: float
    seconds_left: float
    metrics: dict[str, float] = field(default_factory=dict)  # named as trl names them

    def logged(self) -> dict[str, Any]:
        """What the log says of it."""
        names = ("step", "loss", "val_loss", "lr", "grad_norm")
        speed = {"tokens_per_second": round(self.tokens_per_second, 1)}
        return {name: getattr(self, name) for name in names} | speed | self.metrics

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        eta = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        told = next((name for name in SHOWN if name in self.metrics), None)
        right = "" if told is None else f"{SHOWN[told]} {self.metrics[told]:.3f}  "
        validation = "          " if self.val_loss is None else f"val {self.val_loss:.4f}"
        return (
            f"step {self.step:{len(str(self.steps))}}/{self.steps}  loss {self.loss:.4f}  {right}"
            f"{validation}  lr {self.lr:.2e}  grad norm {self.grad_norm:6.3f}"
            f"  {self.tokens_per_second:,.0f} tokens/s  ETA {eta}"
        )


@dataclass(frozen=True)
class Sample:
    """How the model goes on after a prompt."""

    step: int
    best_step: int  # whose weights are the best so far; 0: none are
    prompt: str
    text: str

    def __str__(self) -> str:
        kept = f" (the best so far: {self.best_step})" if 0 < self.best_step < self.step else ""
        return f"--- step {self.step}{kept}, after {self.prompt!r} ---\n{self.text}\n---"


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int

    def __str__(self) -> str:
        return f"step {self.step} is saved"


Record = Note | Report | Sample | Saved
Callback = Callable[[Record], object]


@contextmanager
def warnings_as_notes(report: Callback) -> Iterator[None]:
    """What is warned of within is a note."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        elsewhere = warnings.showwarning

        def showwarning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, UserWarning):
                report(Note(message))
            else:
                elsewhere(message, category, *rest)

        warnings.showwarning = showwarning  # type: ignore[assignment]
        yield


class Progress:
    """A callback that shows a run as one line, which is rewritten; as tqdm's bar where that is
    installed. Notes and samples stand above it."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.width = 0  # of the line that is there
        if importlib.util.find_spec("tqdm") is not None:
            from tqdm.auto import tqdm

            self.bar = tqdm(unit="step")

    def __call__(self, record: Record) -> None:
        if isinstance(record, Saved):
            return
        if self.bar is None:
            stays = not isinstance(record, Report) or record.step == record.steps
            self._write(str(record), "\n" if stays else "")
        elif not isinstance(record, Report):
            self.bar.write(str(record))
        else:
            self.bar.total = record.steps
            self.bar.update(record.step - self.bar.n)
            losses = {"loss": record.loss, "val": record.val_loss}
            self.bar.set_postfix({k: f"{v:.4f}" for k, v in losses.items() if v is not None})
            if record.step == record.steps:
                self.bar.close()

    def _write(self, text: str, end: str) -> None:
        """In place of the line that is there."""
        first, *rest = text.split("\n")
        lines = "\n".join([first.ljust(self.width), *rest])
        print(f"\r{lines}", end=end, file=sys.stderr, flush=True)
        self.width = 0 if end else len(first)
