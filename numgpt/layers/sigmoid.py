"""The logistic function: what gates are made of."""

from __future__ import annotations

import numpy as np


def sigmoid(z: np.ndarray) -> np.ndarray:
    """σ(z) = 1 / (1 + exp(-z)).  Its slope is σ' = exp(-z) / (1 + exp(-z))² = σ (1 - σ)."""
    return 1 / one_plus_exp(-z)


def one_plus_exp(z: np.ndarray) -> np.ndarray:
    """1 + exp(z), which may be infinite: what is divided by it is 0 then."""
    with np.errstate(over="ignore"):
        return 1 + np.exp(z)
