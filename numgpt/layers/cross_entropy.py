"""Log-probabilities of target tokens and their weighted sum, the cross-entropy, from hidden states.

    z = x Wᵀ                                    x (N, C) hidden states, W (V, C), z (N, V) logits
    log p_n[v] = z_nv - log Σ_u exp(z_nu)       the log-softmax
    loss = Σ_n w_n · (-log p_n[target_n])       w_n = 1/n₀ for the mean over n₀ targets

Numerically safe by log Σ_u exp(z_u) = M + log Σ_u exp(z_u - M), M = max(z): no exponent is above 0.
Rows whose target is IGNORE_INDEX count for nothing: their log-probability is given as 0.

Backward. ∂(z[target])/∂z_v = [v = target] and ∂(log Σ_u exp(z_u))/∂z_v = exp(z_v) / Σ_u exp(z_u) =
p_v, so that with dlogp_n = ∂loss/∂(log p_n[target_n])

    dz_nv = dlogp_n · ([v = target_n] - p_nv)   for the cross-entropy dlogp_n = -w_n
    dx = dz W        dW = dzᵀ x                 the linear layer's backward

Two things beside, for policies. Text that was sampled at a temperature τ has the log-probabilities
of z/τ, and dz is that by z/τ, divided by τ. The entropy of a row, H = -Σ_v p_v log p_v, has by
∂p_v/∂z_u = p_v ([u = v] - p_u), as Σ_v p_v = 1 does not change,

    ∂H/∂z_u = -Σ_v ∂p_v/∂z_u log p_v = -p_u (log p_u - Σ_v p_v log p_v) = -p_u (log p_u + H)

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
from numgpt.runtime import (
    Accumulator,
    Weight,
    empty,
    matmul,
    over_row_blocks,
    read_by,
    single_thread_if_small,
)

IGNORE_INDEX = -100
CHUNK_BYTES = 1 << 26  # of logits held at once


@dataclass
class TokenStatistics:
    """How well targets are predicted, summed over those that count."""

    tokens: int = 0
    correct: int = 0  # the target is the likeliest
    entropy: float = 0.0  # of the predicted distributions, in nats

    @classmethod
    def of(cls, z: np.ndarray, targets: np.ndarray) -> TokenStatistics:
        """Of logits z (N, V) and targets (N,), which all count."""
        entropies, highest = _entropies(z)
        correct = z[np.arange(len(z)), targets] >= highest
        return cls(len(z), int(np.count_nonzero(correct)), float(entropies.sum()))

    def add(self, other: TokenStatistics) -> None:
        self.tokens += other.tokens
        self.correct += other.correct
        self.entropy += other.entropy


def mean_weights(targets: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """The weights that make the sum a mean: 1/n for each of the n targets that count, else 0."""
    counted = targets != IGNORE_INDEX
    return counted / np.asarray(max(1, np.count_nonzero(counted)), dtype)


def linear_cross_entropy(
    x: np.ndarray,
    weight: np.ndarray | Weight,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    dweight: Accumulator | None = None,
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
    _check(x, weight, targets)
    weights = mean_weights(targets, x.dtype) if weights is None else weights
    like("weights", weights, x.shape[:1])
    dweight = Accumulator.like(weight) if dweight is None else dweight
    counted = _counted(targets)
    x_counted = read_by(weight, x[counted])  # the same, or rounded
    targets_counted, w_counted = targets[counted], weights[counted]
    dx_counted, loss = empty(x_counted.shape, x.dtype), 0.0

    def on_rows(z: np.ndarray, targets: np.ndarray, w: np.ndarray) -> float:
        """Σ w · (-log p[target]) of some rows; z becomes dz."""
        logp, p_z, _, total = _log_probs(z, targets)
        _into_dz(p_z, total, targets, -w)
        return -float(w.astype(np.float64) @ logp.astype(np.float64))

    for chunk, z in _logits_in_chunks(x_counted, weight):
        if statistics is not None:
            for seen in over_row_blocks(TokenStatistics.of, z, targets_counted[chunk]):
                statistics.add(seen)
        loss += sum(over_row_blocks(on_rows, z, targets_counted[chunk], w_counted[chunk]))
        dz = read_by(weight, z)
        matmul(dz, weight, out=dx_counted[chunk])  # (n, V) -> (n, C)
        dweight.add_outer(dz, x_counted[chunk])
    return loss, _placed(dx_counted, counted, len(x)), dweight.out


class LogProbsCache(NamedTuple):
    x: np.ndarray  # (n, C), the rows whose target counts
    weight: np.ndarray | Weight  # (V, C)
    targets: np.ndarray  # (N,)
    counted: slice | np.ndarray  # which rows they are
    highest: np.ndarray  # M (n, 1)
    total: np.ndarray  # Z = Σ exp(z - M) (n, 1)
    temperature: float = 1.0
    entropy: np.ndarray | None = None  # H (N,), where it was asked for; 0 where no target counts


def linear_log_probs_forward(
    x: np.ndarray,
    weight: np.ndarray | Weight,
    targets: np.ndarray,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[np.ndarray, LogProbsCache]:
    """log p_n[target_n] of the logits x weightᵀ / temperature.  x (N, C), weight (V, C), targets
    (N,) -> logp (N,), cache, which has the rows' entropies where they are asked for."""
    _check(x, weight, targets)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    counted = _counted(targets)
    x_counted, targets_counted = read_by(weight, x[counted]), targets[counted]
    logp_counted = empty(len(x_counted), x.dtype)
    highest, total = np.empty((2, len(x_counted), 1), x.dtype)
    entropies = empty(len(x_counted), x.dtype)

    def on_rows(z: np.ndarray, *of_rows: np.ndarray) -> None:
        targets, logp, highest, total, entropies = of_rows
        if entropy:
            entropies[:], _ = _entropies(z)
        logp[:], _, highest[:], total[:] = _log_probs(z, targets)

    of_rows = targets_counted, logp_counted, highest, total, entropies
    for chunk, z in _logits_in_chunks(x_counted, weight, temperature):
        over_row_blocks(on_rows, z, *(array[chunk] for array in of_rows))
    logp, h = (_placed(values, counted, len(x)) for values in (logp_counted, entropies))
    known = x_counted, weight, targets, counted, highest, total, temperature
    return logp, LogProbsCache(*known, h if entropy else None)


def linear_log_probs_backward(
    dlogp: np.ndarray,
    cache: LogProbsCache,
    dweight: Accumulator | None = None,
    dentropy: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """dlogp (N,), and dentropy (N,) where the entropies were asked for -> dx (N, C), dweight (V,
    C): a new array, or added to the sum that is handed over."""
    x_counted, weight, targets, counted, highest, total, temperature, entropy = cache
    like("dlogp", dlogp, targets.shape)
    dweight = Accumulator.like(weight) if dweight is None else dweight
    dx_counted = empty(x_counted.shape, x_counted.dtype)

    def on_rows(z: np.ndarray, *of_rows: np.ndarray) -> None:
        targets, dlogp, highest, total, *of_entropy = of_rows
        z -= highest
        dz_of_entropy = _dz_of_entropy(z, total, *of_entropy) if of_entropy else None
        _into_dz(np.exp(z, out=z), total, targets, dlogp)
        if dz_of_entropy is not None:
            z += dz_of_entropy

    of_rows = [targets[counted], dlogp[counted] / temperature, highest, total]
    if dentropy is not None:
        if entropy is None:
            raise ValueError("dentropy, of entropies that were not asked for in the forward")
        like("dentropy", dentropy, targets.shape)
        of_rows += [entropy[counted], dentropy[counted] / temperature]
    for chunk, z in _logits_in_chunks(x_counted, weight, temperature):
        over_row_blocks(on_rows, z, *(array[chunk] for array in of_rows))
        dz = read_by(weight, z)
        matmul(dz, weight, out=dx_counted[chunk])  # (n, V) -> (n, C)
        dweight.add_outer(dz, x_counted[chunk])
    return _placed(dx_counted, counted, len(targets)), dweight.out


def _log_probs(
    z: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z (n, V), targets (n,) -> log p[target] = z[target] - M - log Z (n,), p Z in the memory of z,
    M and Z (n, 1)."""
    z_target = z[np.arange(len(z)), targets]
    p_z, highest, total = exponentials(z)
    return z_target - highest[:, 0] - np.log(total[:, 0]), p_z, highest, total


def _entropies(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H = -Σ p log p = log Z - Σ p (z - M) of each row, as log p = z - M - log Z and Σ p = 1, and
    M.  z (n, V) -> (n,), (n,)."""
    p_z, highest, total = exponentials(z.copy())
    entropies = np.log(total) - np.vecdot(p_z, z - highest)[:, None] / total
    return entropies[:, 0], highest[:, 0]


def _dz_of_entropy(
    log_p_z: np.ndarray, total: np.ndarray, entropy: np.ndarray, dentropy: np.ndarray
) -> np.ndarray:
    """dz = dentropy · ∂H/∂z, of z - M (n, V)."""
    log_p = log_p_z - np.log(total)
    return -dentropy[:, None] * np.exp(log_p) * (log_p + entropy[:, None])


def _into_dz(p_z: np.ndarray, total: np.ndarray, targets: np.ndarray, dlogp: np.ndarray) -> None:
    """dz = dlogp · (onehot - p), in the memory of p Z (n, V)."""
    dz = np.multiply(p_z, -dlogp[:, None] / total, out=p_z)
    dz[np.arange(len(dz)), targets] += dlogp


def _counted(targets: np.ndarray) -> slice | np.ndarray:
    """The rows whose target counts; the others have no part in any product."""
    counted = targets != IGNORE_INDEX
    return slice(None) if counted.all() else np.flatnonzero(counted)


def _placed(values: np.ndarray, counted: slice | np.ndarray, rows: int) -> np.ndarray:
    """The values of the rows that count, with zeros for the others of so many."""
    if isinstance(counted, slice):
        return values
    placed = np.zeros((rows, *values.shape[1:]), values.dtype)
    placed[counted] = values
    return placed


def _logits_in_chunks(
    x: np.ndarray, weight: np.ndarray | Weight, temperature: float = 1.0
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows, and their logits (n, V) at a temperature, in memory that the next chunk uses again."""
    count = -(-x.shape[0] * weight.shape[0] * x.dtype.itemsize // CHUNK_BYTES)
    count = max(1, min(count, len(x)))
    edges = [len(x) * index // count for index in range(count + 1)]
    memory = empty((-(-len(x) // count), len(weight)), x.dtype)
    with single_thread_if_small(work=x.size * len(weight)):
        for start, stop in pairwise(edges):
            z = memory[: stop - start]
            matmul(x[start:stop], weight.T, out=z)  # (n, C) -> (n, V)
            if temperature != 1:
                over_row_blocks(lambda z: np.divide(z, temperature, out=z), z)
            yield slice(start, stop), z


def _check(x: np.ndarray, weight: np.ndarray | Weight, targets: np.ndarray) -> None:
    """Raises TypeError or ValueError for what are not rows with a target each."""
    floats("x", x, "N, C")
    if x.shape[1:] != floats("weight", weight, "V, C").shape[1:]:
        raise ValueError(f"x has shape {x.shape}, weight {weight.shape}: the widths must be equal")
    if ids("targets", targets, len(weight), IGNORE_INDEX).shape != x.shape[:1]:
        raise ValueError(f"targets have shape {targets.shape}: expected {x.shape[:1]}")
