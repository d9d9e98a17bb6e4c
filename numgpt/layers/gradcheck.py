"""Is a backward the derivative of its forward?  The numerical check that learners and tests share.

For a random dy, the loss Σ y · dy has by each element of an input the derivative

    (Σ forward(x + h e) · dy  -  Σ forward(x - h e) · dy) / 2h        e a unit vector, error O(h²)

which is what the backward must give there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numgpt.messages import shown

STEP = 1e-6  # h, relative to elements above 1
MOST_ELEMENTS = 100  # of an input, drawn at random where it has more


def gradcheck(
    forward: Callable[..., tuple[np.ndarray, Any]],
    backward: Callable[..., np.ndarray | tuple[np.ndarray, ...]],
    *inputs: np.ndarray,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> bool:
    """True where backward(dy, cache) gives the gradients of forward(*inputs) -> y, cache.

    The gradients are those by the inputs of floating-point numbers, in order, as every pair of
    functions in numgpt.layers has them; an input that is none, such as ids, has no gradient. All is
    computed in float64. Raises AssertionError naming input, element and both values where they
    differ by more than tolerance · max(1, |value|), ValueError where the number of gradients or a
    shape does not fit.

    >>> from numgpt.layers import gelu_tanh_backward, gelu_tanh_forward
    >>> gradcheck(gelu_tanh_forward, gelu_tanh_backward, np.array([[-1.0, 0.5]]))
    True
    >>> gradcheck(gelu_tanh_forward, lambda dy, cache: dy, np.array([[2.0]]))
    Traceback (most recent call last):
    AssertionError: input 0 at (0, 0): backward gives 0.1257..., the numerical derivative is 0.13...
    """
    rng = np.random.default_rng(seed)
    arrays = [_as_float64(array) for array in inputs]
    places = [place for place, array in enumerate(arrays) if array.dtype == np.float64]
    y, cache = forward(*arrays)
    dy = rng.normal(size=y.shape)
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    gradients = tuple(gradient for gradient in gradients if gradient is not None)
    if len(gradients) != len(places):
        raise ValueError(
            f"backward gives {len(gradients)} gradients, forward has {len(places)} inputs of"
            " floating-point numbers"
        )
    for place, gradient in zip(places, gradients, strict=True):
        array = arrays[place]
        if gradient.shape != array.shape:
            raise ValueError(
                f"input {place} has shape {array.shape}, its gradient {gradient.shape}"
            )
        chosen = rng.permutation(array.size)[:MOST_ELEMENTS]
        for element in sorted(chosen.tolist()):
            index = tuple(int(i) for i in np.unravel_index(element, array.shape))
            numerical = _slope(forward, arrays, place, index, dy)
            given = float(gradient[index])
            if not abs(given - numerical) <= tolerance * max(1, abs(numerical)):
                raise AssertionError(
                    f"input {place} at {index}: backward gives {given:.10g}, the numerical"
                    f" derivative is {numerical:.10g}"
                )
    return True


def _as_float64(array: np.ndarray) -> np.ndarray:
    """A copy that may be changed; whole numbers as they are."""
    array = np.array(array)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"an input is {shown(array)}: expected arrays of numbers")
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _slope(
    forward: Callable[..., tuple[np.ndarray, Any]],
    arrays: list[np.ndarray],
    place: int,
    index: tuple[int, ...],
    dy: np.ndarray,
) -> float:
    """The derivative of Σ y · dy by one element of one input."""
    value = arrays[place][index]
    step = STEP * max(1.0, abs(value))
    losses = []
    for moved in (value + step, value - step):
        arrays[place][index] = moved
        losses.append(float((forward(*arrays)[0] * dy).sum()))
    arrays[place][index] = value
    return (losses[0] - losses[1]) / (2 * step)
