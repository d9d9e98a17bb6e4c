"""The logistic function: what gates are made of."""

from __future__ import annotations

import numpy as np


def sigmoid(z: np.ndarray) -> np.ndarray:
    """σ(z) = 1 / (1 + exp(-z)).  Its slope is σ' = exp(-z) / (1 + exp(-z))² = σ (1 - σ)."""
    with np.errstate(over="ignore"):  # exp(-z) may be infinite, and σ is 0 then
        return 1 / (1 + np.exp(-z))
