"""Softmax: any numbers to probabilities (Bridle 1990).

    p_i = exp(z_i - M) / Z,    Z = Σ_j exp(z_j - M),    M = max(z)

M changes nothing, as exp(-M) cancels, but keeps every exponent at 0 or below. log Σ_j exp(z_j) =
M + log Z is the logsumexp, and log p_i = z_i - M - log Z the log-softmax.

Backward. The Jacobian is ∂p_i/∂z_j = p_i (δ_ij - p_j): from p_i = exp(z_i) / Σ exp(z), the quotient
rule gives p_i δ_ij from the numerator and -p_i p_j from the denominator. With dp,

    dz_j = Σ_i dp_i p_i (δ_ij - p_j) = p_j (dp_j - Σ_i dp_i p_i)

Attention has a shorter form of the sum Σ_i dp_i p_i, and log p[target] has dz = onehot - p:
attention.py and cross_entropy.py derive these themselves. What all share is the exponentials.
"""

from __future__ import annotations

import numpy as np


def exponentials(z: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, float -> exp(z - M) in the memory of z, M and Z with a 1 at the axis, -1 or -2.

    Where all of z is -∞, M is the most negative number and Z is 1.
    """
    highest = np.maximum(z.max(axis=axis, keepdims=True), np.finfo(z.dtype).min)
    z -= highest
    np.exp(z, out=z)
    # Sums as products with ones: several times faster than np.sum.
    ones = np.ones(z.shape[axis], z.dtype)
    total = z @ ones[:, None] if axis == -1 else ones[None] @ z
    # The largest z contributes exp(0) = 1, so a sum below 1 means that all are -∞.
    return z, highest, np.maximum(total, 1)


def log_softmax(z: np.ndarray) -> np.ndarray:
    """log p_i = z_i - M - log Z along the last axis.  z (…, V) -> (…, V)."""
    _, highest, total = exponentials(z.copy())
    return z - highest - np.log(total)


def softmax_forward(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z (…, V) -> p (…, V), cache.

    >>> z = np.array([[1.0, 2, 3], [1e4, 0, -1e4]])
    >>> np.allclose(softmax_forward(z)[0][0], np.exp(z[0]) / np.exp(z[0]).sum())
    True
    >>> softmax_forward(z)[0][1]
    array([1., 0., 0.])
    """
    p, _, total = exponentials(z.copy())
    p /= total
    return p, p


def softmax_backward(dp: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dp (…, V) -> dz (…, V)."""
    p = cache
    return p * (dp - (dp * p).sum(axis=-1, keepdims=True))
