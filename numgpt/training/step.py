"""One step of training, on a page: totals, gradients, clip, AdamW, learning rate.

    totals      what must be known of the whole step before its first gradient, for instance the
                number of targets that count
    gradients   of each batch, added up; as each is a sum over the totals, no way to cut a step
                into batches changes it
    update      the gradients clipped by their global norm, then AdamW at this step's rate

A task says what is learnt: next tokens of a text, answers of examples. The loop around it, which
reports, validates and saves, is in loop.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.training.adamw import AdamW

BatchT = TypeVar("BatchT", contravariant=True)
Sums = dict[str, float]  # sums by name: those of parts, or of processes, are added


class Task(Protocol[BatchT]):
    """What a step minimises."""

    def totals(self, model: LanguageModel, batches: Sequence[BatchT]) -> Sums:
        """What must be known of all batches of a step before the first gradient."""

    def gradients(
        self, model: LanguageModel, batch: BatchT, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        """Loss and metrics of one batch, as its part of the step's sums; and its gradients, added
        to those of the batches before."""


def step(
    model: LanguageModel,
    batches: Sequence[BatchT],
    task: Task[BatchT],
    optimizer: AdamW,
    lr: float,
    grad_clip: float,
    dtype: str = "float32",
) -> tuple[Sums, float]:
    """One optimizer step -> the sums of its batches ("loss" among them), and the norm of the
    gradients before clipping.  grad_clip 0 clips nothing; dtype is that of the products."""
    sums: Sums = {}
    gradients = None
    with model.autocast(dtype):  # the weights are rounded here, if at all: once a step
        totals = task.totals(model, batches)
        for batch in batches:
            part, gradients = task.gradients(model, batch, totals, gradients)
            sums = add_sums(sums, part)
    optimizer.lr = lr
    norm = optimizer.step(grad_clip or None)
    return sums, norm


def add_sums(a: Sums, b: Sums) -> Sums:
    return {name: a.get(name, 0) + b.get(name, 0) for name in (a | b)}


def learning_rate(step: int, steps: int, lr: float, min_lr: float, warmup: int) -> float:
    """Linear warm-up, then a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983).

    The rate of step 0 … steps - 1: (step + 1) / warmup · lr up to `warmup`, then lr → min_lr at
    the last step.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
