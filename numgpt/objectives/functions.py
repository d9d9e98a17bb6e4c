"""What the objectives share: the logistic function, and checks of arrays and numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from numgpt.messages import shown

Metrics = dict[str, float]


def log_sigmoid(a: np.ndarray) -> np.ndarray:
    """log σ(a) = -log(1 + e⁻ᵃ), without overflow."""
    return -np.logaddexp(0, -a)


def sigmoid(a: np.ndarray) -> np.ndarray:
    """σ(a) = 1 / (1 + e⁻ᵃ)."""
    return np.exp(log_sigmoid(a))


def same_shapes(**arrays: np.ndarray | None) -> None:
    """Raises ValueError where arrays of other shapes than the first are among them, or a number is
    not finite; TypeError for what are no floating-point numbers."""
    expected = None
    for name, array in arrays.items():
        if array is None:
            continue
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"{name} is of {kind}: pass a NumPy array of floating-point numbers")
        if expected is None:
            expected = name, array.shape
        elif array.shape != expected[1]:
            raise ValueError(
                f"{name} has shape {array.shape}, {expected[0]} {expected[1]}: they must be equal"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}: expected numbers")


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises ValueError for a value that is none of those known."""
    if value not in (choices := list(known)):
        raise ValueError(f"{name}={shown(value)}: expected {' or '.join(choices)}")


def positive(**numbers: float) -> None:
    """Raises ValueError for a number that is not above 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name}={shown(number)}: expected a number above 0")


def masked(mask: np.ndarray, **arrays: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """A mask (B, T) of what counts, as numbers of the arrays' dtype, and the arrays with 0 for what
    does not, whatever stands there.  Raises as `same_shapes`."""
    for name, array in arrays.items():
        if array is not None and np.shape(array) != np.shape(mask):
            raise ValueError(f"{name} has shape {np.shape(array)}, mask {np.shape(mask)}")
    counts = np.asarray(mask, bool)
    kept = {name: a if a is None else np.where(counts, a, 0) for name, a in arrays.items()}
    same_shapes(**kept)
    first = next(array for array in kept.values() if array is not None)
    return counts.astype(first.dtype), *kept.values()  # type: ignore[arg-type]


def of_completions(advantages: np.ndarray, mask: np.ndarray) -> None:
    """Raises ValueError for another number of advantages (B,) than the mask (B, T) has completions,
    or where one is not finite."""
    same_shapes(advantages=advantages)
    if advantages.shape != mask.shape[:1]:
        raise ValueError(f"advantages have shape {advantages.shape}: expected {mask.shape[:1]}")
