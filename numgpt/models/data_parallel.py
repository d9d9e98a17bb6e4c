"""Data parallelism on the cores of one machine, for small models.

A large model spends its time in products, and BLAS spreads each of them over the cores. The
products of a small one last microseconds, too short to be worth spreading, and so does the work
between them. There, each core takes a share of the batch through forward, loss and backward, with
gradients of its own, as the machines of a cluster do (Dean et al. 2012, "Large Scale Distributed
Deep Networks"). With n_s of the n targets that count in share s,

    loss = Σ_s n_s/n · loss_s        and so        dw = Σ_s n_s/n · dw_s
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.layers import IGNORE_INDEX
from numgpt.runtime import num_threads

# Sharing costs a second set of gradients and the time to add it, some 0.1 ms to start a thread, and
# its gain is gone where the products of a share are large.
MOST_PARAMETERS = 1 << 24
LEAST_WORK = 1 << 28  # parameters x tokens


class Share(NamedTuple):
    """Some sequences of a batch."""

    sequences: slice
    weight: float  # n_s / n
    rng: np.random.Generator | None


def cut_batch(
    parameters: int, targets: np.ndarray, rng: np.random.Generator | None = None
) -> list[Share]:
    """The shares of a batch with targets (B, T), as even as can be: one for each thread where that
    pays for a model with so many parameters, else a single one."""
    batch = len(targets)
    pays = parameters <= MOST_PARAMETERS and parameters * targets.size >= LEAST_WORK
    count = min(num_threads(), batch) if pays else 1
    if count == 1:
        return [Share(slice(0, batch), 1.0, rng)]
    counted = np.count_nonzero(targets != IGNORE_INDEX, axis=1)
    edges = [batch * index // count for index in range(count + 1)]
    return [
        Share(
            slice(start, stop),
            counted[start:stop].sum() / max(1, counted.sum()),
            # Threads can't draw from one generator; a drawn seed keeps the numbers reproducible.
            None if rng is None else np.random.default_rng(rng.integers(1 << 63)),
        )
        for start, stop in pairwise(edges)
    ]
