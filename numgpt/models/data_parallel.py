"""Data parallelism on the cores of one machine, for small models.

A large model spends its time in products, and BLAS spreads each of them over the cores. The
products of a small one last microseconds, too short to be worth spreading, and so does the work
between them. There, each core takes some sequences of the batch forward, and back with gradients of
its own, which are added up at the end, as the machines of a cluster do (Chen et al. 2016,
arXiv:1604.00981).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.models.parameters import Gradients
from numgpt.runtime import parallel_for, worthwhile_threads


class Part(NamedTuple):
    """Some sequences of a batch."""

    sequences: slice
    rng: np.random.Generator | None

    def rows(self, time: int) -> slice:
        """Their rows, of sequences of T tokens."""
        return slice(self.sequences.start * time, self.sequences.stop * time)


def cut_batch(
    parameters: int,
    shape: tuple[int, int],
    rng: np.random.Generator | None = None,
    most: int | None = None,
) -> list[Part]:
    """The parts of a batch (B, T), as even as can be: one for each thread that pays for a model
    with so many parameters, and no more than `most`.

    One number is drawn from rng, however many parts there are; their dropout depends on it and on
    their number.
    """
    batch, time = shape
    work = parameters * batch * time
    count = min(batch, most or batch, worthwhile_threads(work=work, extra=parameters))
    edges = [batch * index // count for index in range(count + 1)]
    seed = None if rng is None else rng.integers(1 << 63)
    rngs = [None if seed is None else np.random.default_rng([int(seed), n]) for n in range(count)]
    return [Part(slice(*pair), own) for pair, own in zip(pairwise(edges), rngs, strict=True)]


def add_gradients(body: Callable[..., None], parts: Sequence[tuple], total: Gradients) -> None:
    """body(*part, gradients) for what each part of a batch has, on all cores: adds the gradients of
    all of them to `total`."""
    sums = [total, *(Gradients(total.layout, total.dtype) for _ in parts[1:])]
    parallel_for(lambda number: body(*parts[number], sums[number]), len(parts))
    for other in sums[1:]:
        total.merge(other)
