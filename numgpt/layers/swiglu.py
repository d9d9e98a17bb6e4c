"""SwiGLU, a gated feed-forward layer's activation (Shazeer 2020, arXiv:2002.05202, equation 6).

    y = silu(gate) · up,    silu(z) = z σ(z),    σ(z) = 1 / (1 + exp(-z))

gate and up are two projections of the same input: one decides how much of the other passes.

Backward. With σ' = σ (1 - σ), silu'(z) = σ + z σ (1 - σ) = σ (1 + z (1 - σ)), and so

    dgate = dy · up · σ (1 + gate (1 - σ))        dup = dy · gate σ

The backward computes σ again from gate: that is cheaper than keeping an array as wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.runtime import empty_like, over_row_blocks

Cache = tuple[np.ndarray, np.ndarray]  # gate, up


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, Cache]:
    """gate and up (N, F) -> y (N, F), cache."""
    if floats("gate", gate).shape != floats("up", up).shape:
        raise ValueError(f"gate has shape {gate.shape}, up {up.shape}: they must be equal")
    y = empty_like(gate)

    def rows(gate, up, y):
        _sigmoid(gate, out=y)
        y *= gate
        y *= up

    over_row_blocks(rows, gate, up, y)
    return y, (gate, up)


def swiglu_backward(
    dy: np.ndarray, cache: Cache, out: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """dy (N, F) -> dgate (N, F), dup (N, F); written into the arrays `out` where given."""
    gate, up = cache
    like("dy", dy, gate.shape)
    dgate, dup = (empty_like(dy), empty_like(dy)) if out is None else out

    def rows(dy, gate, up, dgate, dup):
        sigma = _sigmoid(gate, out=empty_like(gate))
        np.subtract(1, sigma, out=dgate)
        dgate *= gate
        dgate += 1
        dgate *= sigma
        dgate *= up
        dgate *= dy
        np.multiply(sigma, gate, out=dup)
        dup *= dy

    over_row_blocks(rows, dy, gate, up, dgate, dup)
    return dgate, dup


def _sigmoid(z: np.ndarray, out: np.ndarray) -> np.ndarray:
    """σ(z), into `out`; where exp(-z) is too large for a number it is infinite, and σ 0."""
    np.negative(z, out=out)
    with np.errstate(over="ignore"):
        np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)
