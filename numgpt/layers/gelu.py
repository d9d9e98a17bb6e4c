"""GELU, the Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    gelu(x) = x Φ(x),   Φ(x) = ½ (1 + erf(x / √2)) the standard normal distribution,
                        φ(x) = exp(-x²/2) / √(2π) its density

GPT-2 uses the approximation with tanh from section 2 of the paper (`gelu_new` in Hugging Face's
configs):

    gelu(x) ≈ ½ x (1 + t),   t = tanh(u),   u = √(2/π) (x + 0.044715 x³)

Backward. The product rule, with Φ' = φ, tanh' = 1 - tanh² and u' = √(2/π) (1 + 3 · 0.044715 x²):

    exact   dx = dy · (Φ(x) + x φ(x))
    tanh    dx = dy · ½ (1 + t + x (1 - t²) u')

The backward computes tanh and erf again from x: that is cheaper than keeping an array as wide as x.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from numgpt.layers.checks import floats, like
from numgpt.runtime import empty_like, over_row_blocks, square

ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu_tanh_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tanh form, GPT-2's.  x (N, F) -> y (N, F), cache."""
    y = empty_like(floats("x", x))

    def rows(x, y):
        _tanh_u(x, square(x), out=y)
        y += 1
        y *= x
        y *= 0.5

    over_row_blocks(rows, x, y)
    return y, x


def gelu_tanh_backward(dy: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dy (N, F) -> dx (N, F)."""
    x, dx = cache, empty_like(like("dy", dy, cache.shape))

    def rows(x, dy, dx):
        x_squared = square(x)
        t = _tanh_u(x, x_squared, out=dx)
        slope = np.multiply(x_squared, 3 * CUBIC * ROOT_2_OVER_PI, out=x_squared)  # u'
        slope += ROOT_2_OVER_PI
        slope *= x
        t_squared = square(t)
        slope *= np.subtract(1, t_squared, out=t_squared)  # x (1 - t²) u'
        dx += 1
        dx += slope
        dx *= dy
        dx *= 0.5

    over_row_blocks(rows, x, dy, dx)
    return dx


def _tanh_u(x: np.ndarray, x_squared: np.ndarray, out: np.ndarray) -> np.ndarray:
    """tanh(√(2/π) (x + 0.044715 x³)), into `out`."""
    np.multiply(x_squared, CUBIC * ROOT_2_OVER_PI, out=out)
    out += ROOT_2_OVER_PI
    out *= x
    return np.tanh(out, out=out)


def gelu_erf_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact form.  x (N, F) -> y (N, F), cache."""
    y = empty_like(floats("x", x))
    over_row_blocks(lambda x, y: np.multiply(x, _normal_cdf(x), out=y), x, y)
    return y, x


def gelu_erf_backward(dy: np.ndarray, cache: np.ndarray) -> np.ndarray:
    """dy (N, F) -> dx (N, F)."""
    x, dx = cache, empty_like(like("dy", dy, cache.shape))

    def rows(x, dy, dx):
        np.multiply(x, x, out=dx)
        dx *= -0.5
        np.exp(dx, out=dx)
        dx *= 1 / math.sqrt(2 * math.pi)  # φ(x)
        dx *= x
        dx += _normal_cdf(x)
        dx *= dy

    over_row_blocks(rows, x, dy, dx)
    return dx


# NumPy has no erf. With t = 1 / (1 + z/2), the function P in  erfc(z) = t exp(P(t) - z²),  z >= 0,
# is so smooth that a polynomial of low degree gives it to machine precision (Press et al.,
# Numerical Recipes, section 6.2.2). The polynomial is interpolated here at Chebyshev points, from
# the standard library's erfc: up to z = 6.5, where 1 - erfc(z) has long been 1 in float64.
LARGEST_Z = 6.5
SMALLEST_T = 1 / (1 + LARGEST_Z / 2)
DEGREE = {np.dtype(np.float32): 9, np.dtype(np.float64): 22}


@functools.cache
def _erfc_coefficients(dtype: np.dtype) -> np.ndarray:
    """P's coefficients, from the lowest power up, in t scaled to [-1, 1]."""

    def exponent(ts: np.ndarray) -> np.ndarray:
        zs = 2 / ts - 2
        return np.array([math.log(math.erfc(z) / t) + z * z for z, t in zip(zs, ts, strict=True)])

    domain = [SMALLEST_T, 1]
    chebyshev = np.polynomial.Chebyshev.interpolate(exponent, DEGREE[dtype], domain=domain)
    power_series = chebyshev.convert(kind=np.polynomial.Polynomial, domain=domain, window=[-1, 1])
    return power_series.coef.astype(dtype)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    """Φ(x) = ½ erfc(-x / √2)."""
    z = np.minimum(np.abs(x) * x.dtype.type(math.sqrt(0.5)), x.dtype.type(LARGEST_Z))
    t = 1 / (1 + 0.5 * z)
    scaled = (t - x.dtype.type((1 + SMALLEST_T) / 2)) * x.dtype.type(
        2 / (1 - SMALLEST_T)
    )  # to [-1, 1]
    *lower, highest = _erfc_coefficients(x.dtype)
    polynomial = np.full_like(x, highest)
    for coefficient in reversed(lower):
        polynomial *= scaled
        polynomial += coefficient
    z *= z
    polynomial -= z
    half_erfc = np.exp(polynomial, out=polynomial)
    half_erfc *= t
    half_erfc *= 0.5
    return np.where(x < 0, half_erfc, 1 - half_erfc)
