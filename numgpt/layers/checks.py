"""What a layer takes: arrays of floating-point numbers, whose leading axes are all rows."""

from __future__ import annotations

import numpy as np


def floats(name: str, x: np.ndarray, axes: str | None = None) -> np.ndarray:
    """x itself.  Raises TypeError for what is no array, ValueError for integers, or where `axes`
    ("B, H, T, D") are given for another number of them."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} is a {type(x).__name__}: pass a NumPy array")
    if x.dtype.kind != "f":
        raise ValueError(
            f"{name} holds {x.dtype} numbers: pass float32 or float64, {name}.astype(np.float32)"
        )
    if axes is not None and x.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} has shape {x.shape}: expected ({axes})")
    return x


def rows(name: str, x: np.ndarray, width: int) -> np.ndarray:
    """x (…, width) -> (N, width), a view where it can be one.  Raises as `floats` does, and
    ValueError for another width."""
    if floats(name, x).ndim == 2 and x.shape[1] == width:
        return x
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{name} has shape {x.shape}: its last axis must be {width}, the layer's")
    return x.reshape(-1, width)
