"""The kinds of runs: how each begins, and what it trains on."""

from __future__ import annotations

from typing import Any, NamedTuple

from numgpt.training import pretraining, tuning
from numgpt.training.config import RunConfig, TrainConfig, TuneConfig
from numgpt.training.starting import Prepare
from numgpt.training.tasks import RunTask


class Kind(NamedTuple):
    prepare: Prepare[Any]
    task: type[RunTask]


KINDS: dict[type[RunConfig], Kind] = {
    TrainConfig: Kind(pretraining.prepare, pretraining.Text),
    TuneConfig: Kind(tuning.prepare, tuning.Examples),
}
