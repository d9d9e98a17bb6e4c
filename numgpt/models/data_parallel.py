"""Data parallelism on the cores of one machine, for small models.

A large model spends its time in products, and BLAS spreads each of them over the cores. The
products of a small one last microseconds, too short to be worth spreading, and so does the work
between them. There, each core takes a share of the batch through forward, loss and backward, with
gradients of its own, which are added up at the end, as the machines of a cluster do (Chen et al.
2016, arXiv:1604.00981). With n_s of the n targets that count in share s,

    loss = Σ_s n_s/n · loss_s        and so        dw = Σ_s n_s/n · dw_s
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.layers import IGNORE_INDEX
from numgpt.runtime import worthwhile_threads


class Share(NamedTuple):
    """Some sequences of a batch."""

    sequences: slice
    weight: float  # n_s / n
    rng: np.random.Generator | None


def cut_batch(
    parameters: int, targets: np.ndarray, rng: np.random.Generator | None = None
) -> list[Share]:
    """The shares of a batch with targets (B, T), as even as can be: one for each thread that pays
    for a model with so many parameters.

    One number is drawn from rng, however many shares there are; their dropout depends on it and on
    their number.
    """
    batch = len(targets)
    count = min(batch, worthwhile_threads(work=parameters * targets.size, extra=parameters))
    counted = np.count_nonzero(targets != IGNORE_INDEX, axis=1)
    total = max(1, counted.sum())
    edges = [batch * index // count for index in range(count + 1)]
    seed = None if rng is None else rng.integers(1 << 63)
    return [
        Share(
            slice(start, stop),
            float(counted[start:stop].sum() / total) if count > 1 else 1.0,
            None if seed is None else np.random.default_rng([seed, index]),
        )
        for index, (start, stop) in enumerate(pairwise(edges))
    ]
