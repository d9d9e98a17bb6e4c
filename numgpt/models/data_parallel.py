"""Data parallelism on the cores of one machine, for small models.

A large model spends its time in products, and BLAS spreads each of them over the cores. The
products of a small one last microseconds, too short to be worth spreading, and so does the work
between them. There, each core takes a part of the batch through forward, loss and backward, with
gradients of its own, which are added up at the end, as the machines of a cluster do (Chen et al.
2016, arXiv:1604.00981). The loss is a sum over targets with weights that are known beforehand, so
the sum over the parts is the sum over the batch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.runtime import worthwhile_threads


class Part(NamedTuple):
    """Some sequences of a batch."""

    number: int
    sequences: slice
    rng: np.random.Generator | None


def cut_batch(
    parameters: int, shape: tuple[int, int], rng: np.random.Generator | None = None
) -> list[Part]:
    """The parts of a batch (B, T), as even as can be: one for each thread that pays for a model
    with so many parameters.

    One number is drawn from rng, however many parts there are; their dropout depends on it and on
    their number.
    """
    batch, time = shape
    work = parameters * batch * time
    count = min(batch, worthwhile_threads(work=work, extra=parameters))
    edges = [batch * index // count for index in range(count + 1)]
    seed = None if rng is None else rng.integers(1 << 63)
    return [
        Part(
            index,
            slice(start, stop),
            None if seed is None else np.random.default_rng([int(seed), index]),
        )
        for index, (start, stop) in enumerate(pairwise(edges))
    ]
