"""Log-probabilities of target tokens and their weighted sum, the cross-entropy, from hidden states.

    z = x Wᵀ                                    x (N, C) hidden states, W (V, C), z (N, V) logits
    log p_n[v] = z_nv - log Σ_u exp(z_nu)       the log-softmax
    loss = Σ_n w_n · (-log p_n[target_n])       w_n = 1/n₀ for the mean over n₀ targets

Numerically safe by log Σ_u exp(z_u) = M + log Σ_u exp(z_u - M), M = max(z): no exponent is above 0.
Rows whose target is `ignore_index` count for nothing: their log-probability is given as 0.

Backward. ∂(z[target])/∂z_v = [v = target] and ∂(log Σ_u exp(z_u))/∂z_v = exp(z_v) / Σ_u exp(z_u) =
p_v, so that with dlogp_n = ∂loss/∂(log p_n[target_n])

    dz_nv = dlogp_n · ([v = target_n] - p_nv)   for the cross-entropy dlogp_n = -w_n
    dx = dz W        dW = dzᵀ x                 the linear layer's backward

The logits are a GPT's largest activation by far (1024 tokens x 50257 words in float32 are 206 MB).
A row's gradient needs that row's logits only, so a chunk of rows at a time goes through product,
softmax and the backward's two products, and the next one uses its memory again. What has to see all
log-probabilities before it knows their gradients (`linear_log_probs_forward`, then `_backward`)
keeps M and Σ exp of each row, and computes the chunk's logits a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats, ids, like
from numgpt.layers.softmax import exponentials
from numgpt.runtime import Accumulator, empty, empty_like, matmul, over_row_blocks

IGNORE_INDEX = -100
CHUNK_BYTES = 1 << 26  # of logits held at once


@dataclass
class TokenStatistics:
    """How well targets are predicted, summed over those that count."""

    tokens: int = 0
    correct: int = 0  # the target is the likeliest
    entropy: float = 0.0  # of the predicted distributions, in nats

    def add(self, other: TokenStatistics) -> None:
        self.tokens += other.tokens
        self.correct += other.correct
        self.entropy += other.entropy


class LogProbsCache(NamedTuple):
    x: np.ndarray  # (N, C)
    weight: np.ndarray  # (V, C)
    targets: np.ndarray  # (N,)
    highest: np.ndarray  # M (N, 1)
    total: np.ndarray  # Σ exp(z - M) (N, 1)
    ignore_index: int


def mean_weights(
    targets: np.ndarray, dtype: np.typing.DTypeLike, ignore_index: int = IGNORE_INDEX
) -> np.ndarray:
    """The weights that make the sum a mean: 1/n for each of the n targets that count, else 0."""
    counted = targets != ignore_index
    return counted / np.asarray(max(1, np.count_nonzero(counted)), dtype)


def linear_cross_entropy(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    dweight: Accumulator | None = None,
    ignore_index: int = IGNORE_INDEX,
    statistics: TokenStatistics | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Σ_n w_n · (-log p_n[target_n]) of the logits x weightᵀ, forward and backward in one, as the
    logits of a chunk are there.

    x (N, C), weight (V, C), targets (N,), weights (N,), by default those of the mean -> loss,
    dx (N, C), dweight (V, C): a new array, or added to the sum that is handed over. `statistics`,
    if given, are added to.

    >>> x, weight = np.random.default_rng(0).normal(size=(2, 4, 3))
    >>> z = x @ weight.T
    >>> log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    >>> loss, dx, dweight = linear_cross_entropy(x, weight, np.array([0, 3, 1, 1]))
    >>> np.allclose(loss, -np.mean(log_p[[0, 1, 2, 3], [0, 3, 1, 1]]))
    True
    >>> dz = (np.exp(log_p) - np.eye(4)[[0, 3, 1, 1]]) / 4
    >>> np.allclose(dx, dz @ weight) and np.allclose(dweight, dz.T @ x)
    True
    """
    _check(x, weight, targets, ignore_index)
    weights = mean_weights(targets, x.dtype, ignore_index) if weights is None else weights
    like("weights", weights, x.shape[:1])
    counted = np.flatnonzero(targets != ignore_index)
    if not len(counted):
        return 0.0, np.zeros_like(x), np.zeros_like(weight) if dweight is None else dweight.out
    dweight = Accumulator.like(weight) if dweight is None else dweight
    if len(counted) < len(targets):  # the others have no part in it
        dx = np.zeros_like(x)
        loss, dx[counted], _ = linear_cross_entropy(
            x[counted],
            weight,
            targets[counted],
            weights[counted],
            dweight,
            statistics=statistics,
        )
        return loss, dx, dweight.out
    dx = empty_like(x)
    loss = 0.0

    def rows(z: np.ndarray, targets: np.ndarray, w: np.ndarray) -> tuple[float, TokenStatistics]:
        places = np.arange(len(z))
        chosen = z[places, targets]
        seen = TokenStatistics() if statistics is None else _statistics(z, chosen)
        dz, highest, total = exponentials(z)  # exp(z - M), which becomes dz
        log_p = chosen - highest[:, 0] - np.log(total[:, 0])
        dz *= w[:, None] / total  # w p
        dz[places, targets] -= w
        return -float(w.astype(np.float64) @ log_p.astype(np.float64)), seen

    for part, z in _logits_in_chunks(x, weight):
        for block_loss, seen in over_row_blocks(rows, z, targets[part], weights[part]):
            loss += block_loss
            if statistics is not None:
                statistics.add(seen)
        matmul(z, weight, out=dx[part])  # dz (n, V) -> (n, C)
        if dweight.wanted:
            dweight.add_product(z.T, x[part])
    return loss, dx, dweight.out


def _statistics(z: np.ndarray, chosen: np.ndarray) -> TokenStatistics:
    """Of logits z (n, V), and those of the targets (n,)."""
    p, highest, total = exponentials(z.copy())
    # H = log Σ exp(z) - Σ p z = log Z - Σ p (z - M), as Σ p = 1; this p is Z times itself.
    mean = np.vecdot(p, z - highest) / total[:, 0]
    entropy = np.log(total[:, 0]) - mean
    return TokenStatistics(
        len(z), int(np.count_nonzero(chosen >= highest[:, 0])), float(entropy.sum())
    )


def linear_log_probs_forward(
    x: np.ndarray, weight: np.ndarray, targets: np.ndarray, ignore_index: int = IGNORE_INDEX
) -> tuple[np.ndarray, LogProbsCache]:
    """log p_n[target_n] of the logits x weightᵀ.  x (N, C), weight (V, C), targets (N,) -> logp
    (N,), cache."""
    _check(x, weight, targets, ignore_index)
    logp, highest, total = np.zeros(len(x), x.dtype), *np.empty((2, len(x), 1), x.dtype)

    def rows(
        z: np.ndarray,
        targets: np.ndarray,
        logp: np.ndarray,
        highest: np.ndarray,
        total: np.ndarray,
    ) -> None:
        counted = np.flatnonzero(targets != ignore_index)
        chosen = z[counted, targets[counted]]
        _, highest[:], total[:] = exponentials(z)
        logp[counted] = chosen - highest[counted, 0] - np.log(total[counted, 0])

    for part, z in _logits_in_chunks(x, weight):
        over_row_blocks(rows, z, targets[part], logp[part], highest[part], total[part])
    return logp, LogProbsCache(x, weight, targets, highest, total, ignore_index)


def linear_log_probs_backward(
    dlogp: np.ndarray, cache: LogProbsCache, dweight: Accumulator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """dlogp (N,) -> dx (N, C), dweight (V, C): a new array, or added to the sum that is handed
    over."""
    x, weight, targets, highest, total, ignore_index = cache
    like("dlogp", dlogp, x.shape[:1])
    dweight = Accumulator.like(weight) if dweight is None else dweight
    dx = empty_like(x)

    def rows(
        z: np.ndarray,
        targets: np.ndarray,
        dlogp: np.ndarray,
        highest: np.ndarray,
        total: np.ndarray,
    ) -> None:
        counted = np.flatnonzero(targets != ignore_index)
        d = np.zeros_like(total)
        d[counted, 0] = dlogp[counted]
        dz = np.exp(np.subtract(z, highest, out=z), out=z)  # exp(z - M), which becomes dz
        dz *= -d / total  # -dlogp p
        dz[counted, targets[counted]] += d[counted, 0]

    for part, z in _logits_in_chunks(x, weight):
        over_row_blocks(rows, z, targets[part], dlogp[part], highest[part], total[part])
        matmul(z, weight, out=dx[part])  # (n, V) -> (n, C)
        if dweight.wanted:
            dweight.add_product(z.T, x[part])
    return dx, dweight.out


def _logits_in_chunks(x: np.ndarray, weight: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows, and their logits (n, V), in memory that the next chunk uses again."""
    count = -(-x.shape[0] * weight.shape[0] * x.itemsize // CHUNK_BYTES)
    count = max(1, min(count, len(x)))
    edges = [len(x) * index // count for index in range(count + 1)]
    memory = empty((-(-len(x) // count), len(weight)), x.dtype)
    for start, stop in pairwise(edges):
        z = memory[: stop - start]
        yield slice(start, stop), matmul(x[start:stop], weight.T, out=z)  # (n, C) -> (n, V)


def _check(x: np.ndarray, weight: np.ndarray, targets: np.ndarray, ignore_index: int) -> None:
    """Raises TypeError or ValueError for what are not rows with a target each."""
    floats("x", x, "N, C")
    if x.shape[1:] != floats("weight", weight, "V, C").shape[1:]:
        raise ValueError(f"x has shape {x.shape}, weight {weight.shape}: the widths must be equal")
    if ids("targets", targets, len(weight), ignore_index).shape != x.shape[:1]:
        raise ValueError(f"targets have shape {targets.shape}: expected {x.shape[:1]}")
