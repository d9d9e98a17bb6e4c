"""GELU, the Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    gelu(x) = x Φ(x),   Φ(x) = ½ (1 + erf(x / √2)) the standard normal distribution,
                        φ(x) = exp(-x²/2) / √(2π) its density

GPT-2 uses the approximation with tanh from section 2 of the paper (`gelu_new` in Hugging Face's
configs):

    gelu(x) ≈ ½ x (1 + tanh(u)),   u = √(2/π) (x + 0.044715 x³)

As tanh(u) = 2 σ(2u) - 1, ½ (1 + tanh(u)) is the logistic function σ(z) at z = 2u. So this form is
x σ(z) = x / (1 + exp(-z)): one exponential, and no digits are lost where tanh comes near -1.

Backward. The product rule, with Φ' = φ, σ' = σ (1 - σ) and z' = 2 √(2/π) (1 + 3 · 0.044715 x²):

    exact   dx = dy · (Φ(x) + x φ(x))
    tanh    dx = dy · (σ + x σ (1 - σ) z')

The backward recomputes σ and erf from x: that is cheaper than keeping an array as wide as x.
"""

from __future__ import annotations

import math

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.layers.erf import normal_cdf
from numgpt.layers.sigmoid import one_plus_exp, sigmoid
from numgpt.runtime import empty_like, over_row_blocks

LINEAR = 2 * math.sqrt(2 / math.pi)  # z = LINEAR · x + CUBIC · x³
CUBIC = LINEAR * 0.044715


def gelu_tanh_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tanh form, GPT-2's.  x (N, F) -> y (N, F), cache.

    >>> x = np.linspace(-3, 3, 7)
    >>> u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    >>> np.allclose(gelu_tanh_forward(x)[0], 0.5 * x * (1 + np.tanh(u)))
    True
    """
    y = empty_like(floats("x", x))

    def on_rows(x: np.ndarray, y: np.ndarray) -> None:
        np.divide(x, one_plus_exp(x * (-LINEAR - CUBIC * (x * x))), out=y)

    over_row_blocks(on_rows, x, y)
    return y, x


def gelu_tanh_backward(dy: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dy (N, F) -> dx (N, F)."""
    x, dx = cache, empty_like(like("dy", dy, cache.shape))

    def on_rows(x: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
        # From the inside out, in the memory of dx: that of new arrays is not in the cache.
        np.multiply(x, x, out=dx)
        s = sigmoid(x * (LINEAR + CUBIC * dx))
        dx *= 3 * CUBIC
        dx += LINEAR  # z'
        dx *= x * (1 - s)
        dx += 1
        dx *= s
        dx *= dy

    over_row_blocks(on_rows, x, dy, dx)
    return dx


def gelu_erf_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact form.  x (N, F) -> y (N, F), cache.

    >>> x = np.linspace(-3, 3, 7)
    >>> cdf = [(1 + math.erf(z / math.sqrt(2))) / 2 for z in x]
    >>> np.allclose(gelu_erf_forward(x)[0], x * cdf)
    True
    """
    y = empty_like(floats("x", x))
    over_row_blocks(lambda x, y: np.multiply(x, normal_cdf(x), out=y), x, y)
    return y, x


def gelu_erf_backward(dy: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dy (N, F) -> dx (N, F)."""
    x, dx = cache, empty_like(like("dy", dy, cache.shape))

    def on_rows(x: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> None:
        density = np.exp(-0.5 * (x * x)) / math.sqrt(2 * math.pi)  # φ(x)
        np.multiply(dy, normal_cdf(x) + x * density, out=dx)

    over_row_blocks(on_rows, x, dy, dx)
    return dx
