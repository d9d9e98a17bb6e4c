"""What a layer takes: arrays of floating-point numbers, whose leading axes are all rows."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from numgpt.runtime import Weight

ArrayT = TypeVar("ArrayT", bound=np.ndarray | Weight)


def floats(name: str, x: ArrayT, axes: str | None = None) -> ArrayT:
    """x itself.  Raises TypeError for what is no array, ValueError for integers, or where `axes`
    ("B, H, T, D") are given for another number of them."""
    if not isinstance(x, (np.ndarray, Weight)):
        raise TypeError(f"{name} is a {type(x).__name__}: pass a NumPy array")
    if x.dtype.char not in "fd":  # float32 and float64
        raise ValueError(
            f"{name} holds {x.dtype} numbers: pass float32 or float64, {name}.astype(np.float32)"
        )
    if axes is not None and x.ndim != axes.count(",") + 1:
        raise ValueError(f"{name} has shape {x.shape}: expected ({axes})")
    return x


def as_rows(name: str, x: np.ndarray, width: int, count: int | None = None) -> np.ndarray:
    """x (…, width) -> (N, width), a view where it can be one.  Raises as `floats` does, and
    ValueError for another width, or another number of rows than `count`."""
    if floats(name, x).ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{name} has shape {x.shape}: its last axis must be {width}, the layer's")
    flat = x if x.ndim == 2 else x.reshape(-1, width)
    if count is not None and len(flat) != count:
        raise ValueError(f"{name} has shape {x.shape}: expected {count} rows, as the forward had")
    return flat


def like(name: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """x itself.  Raises as `floats` does, and ValueError for another shape."""
    if floats(name, x).shape != shape:
        raise ValueError(f"{name} has shape {x.shape}: expected {shape}")
    return x


def vector(name: str, x: np.ndarray) -> np.ndarray:
    """x (C,) itself.  Raises as `floats` does, and ValueError for an empty one."""
    if floats(name, x, "C").size == 0:
        raise ValueError(f"{name} is empty: expected a number for each column")
    return x


def ids(name: str, x: np.ndarray, size: int, ignore: int | None = None) -> np.ndarray:
    """x itself.  Raises TypeError for what holds no whole numbers, ValueError for one that is
    neither in [0, size) nor to be ignored."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iu":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"{name} is of {kind}: pass a NumPy array of whole numbers")
    wrong = (x < 0) | (x >= size)
    if ignore is not None:
        wrong &= x != ignore
    if wrong.any():
        raise ValueError(f"{name} holds {x[wrong][0]}: expected whole numbers from 0 to {size - 1}")
    return x
