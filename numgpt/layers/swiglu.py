"""SwiGLU, a gated feed-forward layer's activation (Shazeer 2020, arXiv:2002.05202, equation 6).

    y = silu(gate) · up,    silu(z) = z σ(z) = z / (1 + exp(-z))

gate and up are two projections of the same input: silu(gate) decides how much of up passes.

Backward. With σ' = σ (1 - σ), silu'(z) = σ + z σ (1 - σ) = σ + silu(z) (1 - σ), and so,
σ being σ(gate),

    dgate = dy · up · (σ + silu(gate) (1 - σ))        dup = dy · silu(gate)

The backward recomputes σ from gate: that is cheaper than keeping an array as wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.layers.sigmoid import one_plus_exp, sigmoid
from numgpt.runtime import empty_like, over_row_blocks


class SwiGLUCache(NamedTuple):
    gate: np.ndarray  # (N, F)
    up: np.ndarray  # (N, F)


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, SwiGLUCache]:
    """gate and up (N, F) -> y (N, F), cache.

    >>> gate, up = np.random.default_rng(0).normal(size=(2, 3, 4))
    >>> np.allclose(swiglu_forward(gate, up)[0], gate / (1 + np.exp(-gate)) * up)
    True
    """
    if floats("gate", gate).shape != floats("up", up).shape:
        raise ValueError(f"gate has shape {gate.shape}, up {up.shape}: they must be equal")
    y = empty_like(gate)

    def on_rows(gate: np.ndarray, up: np.ndarray, y: np.ndarray) -> None:
        np.divide(gate, one_plus_exp(-gate), out=y)
        y *= up

    over_row_blocks(on_rows, gate, up, y)
    return y, SwiGLUCache(gate, up)


def swiglu_backward(
    dy: np.ndarray, cache: SwiGLUCache, out: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """dy (N, F) -> dgate (N, F), dup (N, F); written into the arrays `out` where given."""
    gate, up = cache
    like("dy", dy, gate.shape)
    dgate, dup = (empty_like(dy), empty_like(dy)) if out is None else out

    def on_rows(*of_rows: np.ndarray) -> None:
        dy, gate, up, dgate, dup = of_rows
        s = sigmoid(gate)
        silu = gate * s
        np.multiply(dy * up, s + silu * (1 - s), out=dgate)
        np.multiply(dy, silu, out=dup)

    over_row_blocks(on_rows, dy, gate, up, dgate, dup)
    return dgate, dup
