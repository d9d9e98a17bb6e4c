"""Softmax cross-entropy, from logits, as the mean over the targets that count.

    p_v = exp(z_v) / Σ_w exp(z_w)        loss = mean_n -log p_n[target_n]        z (N, V) logits

Numerically safe by log p_v = z_v - max(z) - log Σ_w exp(z_w - max(z)): no exponent is above 0. Rows
whose target is `ignore_index` count neither in the sum nor in the mean.

Backward. -log p[target] = log Σ_w exp(z_w) - z[target], whose derivative by z_v is p_v - [v =
target]:

    dz = dloss / count · (p - onehot(target))        and 0 in rows that do not count

When only the loss and the gradients are wanted, the logits z = x Wᵀ of a GPT are its largest
activation by far (1024 tokens x 50257 words in float32 are 206 MB). A row's gradient needs that
row's logits only, so `linear_cross_entropy` takes a chunk of rows at a time through product,
softmax and the two products of the linear layer's backward, dx = dz W and dW = dzᵀ x, and then uses
the chunk's memory again.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numgpt.layers.checks import floats, ids
from numgpt.runtime import add_matmul, empty, empty_like, matmul, over_row_blocks

IGNORE_INDEX = -100
CHUNK_BYTES = 1 << 26  # of logits held at once

Cache = tuple[np.ndarray, np.ndarray]


def cross_entropy_forward(
    logits: np.ndarray, targets: np.ndarray, ignore_index: int = IGNORE_INDEX
) -> tuple[float, Cache]:
    """logits (N, V), targets (N,) -> loss (0.0 where no target counts), cache."""
    _check(logits, targets, logits.shape[1] if np.ndim(logits) == 2 else 0, ignore_index)
    dlogits = logits.copy()
    scale = 1 / max(1, np.count_nonzero(targets != ignore_index))
    loss = _loss_and_dlogits(dlogits, targets, ignore_index, scale)
    return loss, (dlogits, targets)


def cross_entropy_backward(dloss: float, cache: Cache) -> np.ndarray:
    """dloss scalar -> dlogits (N, V)."""
    dlogits, _ = cache
    scaled = empty_like(dlogits)
    over_row_blocks(
        lambda d, scaled: np.multiply(d, d.dtype.type(dloss), out=scaled), dlogits, scaled
    )
    return scaled


def linear_cross_entropy(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    ignore_index: int = IGNORE_INDEX,
    dweight: np.ndarray | None = None,
    accumulate: bool = True,
    scale: float = 1.0,
) -> tuple[float, np.ndarray | None]:
    """Cross-entropy of the logits x weightᵀ, a chunk of rows at a time.

    x (N, C), weight (V, C), targets (N,) -> loss, and dx (N, C) where dweight (V, C) is given to
    add into, else None. The gradients are those of scale · loss, the loss itself is not scaled.
    """
    _check(x, targets, len(floats("weight", weight, "V, C")), ignore_index)
    counted = max(1, np.count_nonzero(targets != ignore_index))
    chunks = -(-x.shape[0] * weight.shape[0] * x.itemsize // CHUNK_BYTES)
    edges = [len(x) * index // chunks for index in range(chunks + 1)]
    logits = empty((-(-len(x) // chunks), len(weight)), x.dtype)
    dx = None if dweight is None else empty_like(x)
    loss = 0.0
    for start, stop in pairwise(edges):
        chunk = logits[: stop - start]
        matmul(x[start:stop], weight.T, out=chunk)  # (n, C) -> (n, V)
        loss += _loss_and_dlogits(chunk, targets[start:stop], ignore_index, 1 / counted, scale)
        if dweight is not None:
            matmul(chunk, weight, out=dx[start:stop])  # (n, V) -> (n, C)
            add_matmul(dweight, chunk.T, x[start:stop], accumulate or start > 0)
    return loss, dx


def _check(rows: np.ndarray, targets: np.ndarray, vocabulary: int, ignore_index: int) -> None:
    """Raises TypeError or ValueError for what are not rows with a target each."""
    floats("x", rows, "N, C")
    if ids("targets", targets, vocabulary, ignore_index).shape != rows.shape[:1]:
        raise ValueError(f"targets have shape {targets.shape}: expected {rows.shape[:1]}")


def _loss_and_dlogits(
    logits: np.ndarray,
    targets: np.ndarray,
    ignore_index: int,
    row_weight: float,
    scale: float = 1.0,
) -> float:
    """Σ_n row_weight · -log p_n[target_n]; overwrites the logits with its gradient times
    `scale`."""

    def rows(z, targets):
        counted = np.flatnonzero(targets != ignore_index)
        targets = targets[counted]
        z -= z.max(axis=1, keepdims=True)
        log_p = z[counted, targets]
        np.exp(z, out=z)
        total = z @ np.ones(z.shape[1], z.dtype)
        log_p -= np.log(total[counted])
        factor = np.zeros_like(total)
        factor[counted] = row_weight * scale / total[counted]
        z *= factor[:, None]
        z[counted, targets] -= z.dtype.type(row_weight * scale)
        return -row_weight * log_p.sum(dtype=np.float64)

    return float(sum(over_row_blocks(rows, logits, targets)))
