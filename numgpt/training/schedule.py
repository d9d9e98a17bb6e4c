"""Learning rate: linear warm-up, then a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983)."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, lr: float, min_lr: float, warmup: int) -> float:
    """The rate of step 0 … steps - 1: (step + 1) / warmup · lr up to `warmup`, then lr → min_lr at
    the last step."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
