"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

A head's D features are D/2 pairs, each a point in a plane. At position t, pair i is turned by the
angle t · ω_i,

    y_1 = x_1 cos(t ω_i) - x_2 sin(t ω_i)
    y_2 = x_2 cos(t ω_i) + x_1 sin(t ω_i)            ω_i = base^(-2i/D)

for queries and keys alike. With R(a) the rotation by a, R(a)ᵀ R(b) = R(b - a), and therefore

    (R(s ω) q) · (R(t ω) k) = q · R((t - s) ω) k

so q · k sees how far apart two tokens are, and nowhere does the model need a table of positions.

The pairs are those of GPT-NeoX and Hugging Face's Llama, feature i of the first half with feature i
of the second, (0, D/2), (1, D/2 + 1), … The paper's are neighbours, (0, 1), (2, 3), …, which
differs by a permutation of the features, that is, of the rows of the projections that make q and k.

Backward. The transpose of a rotation, R(a)ᵀ = R(-a), turns back by the same angle,

    dx_1 = dy_1 cos(t ω_i) + dy_2 sin(t ω_i)
    dx_2 = dy_2 cos(t ω_i) - dy_1 sin(t ω_i)

Longer contexts (Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783): slow pairs, which turn less
than `low` times within the context L of the first training, are slowed down by a factor; fast ones,
which turn more than `high` times, stay; between the two it is interpolated,

    ω' = (1 - s) ω / factor + s ω,    s = (L ω / 2π - low) / (high - low), kept within [0, 1]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from numgpt.layers.checks import floats
from numgpt.runtime import empty


class Rotation(NamedTuple):
    """By what each pair is turned.  The two lines for y are computed in one,
    y = (x_1, x_2) · cos + (x_2, x_1) · ∓sin."""

    cos: np.ndarray  # (B, 1, T, 1, D/2)
    sin: np.ndarray  # ∓sin (B, 1, T, 2, D/2): minus for y_1, plus for y_2


def rope_frequencies(size: int, base: float = 10000.0) -> np.ndarray:
    """ω (D/2,) in radians a position, float64, for heads of an even size D."""
    return base ** (-np.arange(0, size, 2) / size)


def llama3_frequencies(
    frequencies: np.ndarray,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> np.ndarray:
    """ω (D/2,) -> ω' (D/2,), in the names that Hugging Face's configs give the quantities."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    s = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return (1 - s) * frequencies / factor + s * frequencies


def rope_rotation(
    positions: np.ndarray, frequencies: np.ndarray, dtype: np.typing.DTypeLike
) -> Rotation:
    """positions (B, T), frequencies (D/2,) -> what turns each pair, for all heads and layers."""
    angles = positions[:, None, :, None, None] * frequencies
    sin = np.sin(angles) * [[-1], [1]]
    return Rotation(np.cos(angles).astype(dtype), sin.astype(dtype))


def rope_forward(x: np.ndarray, rotation: Rotation) -> tuple[np.ndarray, Rotation]:
    """Turn each pair of x (B, H, T, D) by its position's angle -> y (B, H, T, D), cache.  The
    memory of y is laid out as (B, T, H, D).

    >>> x, angles = np.random.default_rng(0).normal(size=(1, 1, 5, 4)), np.arange(5)[:, None] * 0.1
    >>> rotation = rope_rotation(np.arange(5)[None], np.array([0.1, 0.1]), np.float64)
    >>> z = (x[0, 0, :, :2] + 1j * x[0, 0, :, 2:]) * np.exp(1j * angles)  # pairs as complex numbers
    >>> np.allclose(rope_forward(x, rotation)[0], np.concatenate([z.real, z.imag], axis=-1))
    True
    """
    cos, sin = rotation
    return _turned(floats("x", x, "B, H, T, D"), cos, sin), rotation


def rope_backward(dy: np.ndarray, cache: Rotation) -> np.ndarray:
    """dy (B, H, T, D) -> dx (B, H, T, D)."""
    cos, sin = cache
    return _turned(dy, cos, -sin)


def _turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    batch, heads, time, size = x.shape
    y = empty((batch, time, heads, 2, size // 2), x.dtype).transpose(0, 2, 1, 3, 4)
    pairs = x.reshape(y.shape)  # a view
    np.add(pairs * cos, pairs[..., ::-1, :] * sin, out=y)
    return y.reshape(x.shape)
