"""What a model takes: ids, targets, weights, as lists or arrays, checked.

Each raises ValueError in one line that names the value and what is expected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numgpt.layers import IGNORE_INDEX, mean_weights
from numgpt.messages import shown
from numgpt.models.config import Config

Ids = Sequence[int] | Sequence[Sequence[int]] | np.ndarray


def ids_array(ids: Ids, config: Config, any_length: bool = False) -> np.ndarray:
    """ids as (B, T) int64; not empty, ragged, out of range or, without any_length, too long."""
    array = _integers("ids", ids)
    if array.shape[1] == 0 or array.shape[0] == 0:
        raise ValueError("ids are empty: give at least one token")
    if array.shape[1] > config.context_length and not any_length:
        raise ValueError(
            f"{array.shape[1]} tokens are more than the model's"
            f" {config.context_field}={config.context_length}: shorten the input"
        )
    _check_range("ids", array, config)
    return array


def targets_array(targets: Ids, ids: np.ndarray, config: Config) -> np.ndarray:
    """targets as (B, T) int64, one for each of the ids (B, T)."""
    array = _integers("targets", targets)
    if array.shape != ids.shape:
        raise ValueError(f"targets have shape {array.shape}, ids {ids.shape}: they must be equal")
    _check_range("targets", array[array != IGNORE_INDEX], config)
    return array


def weights_array(
    weights: np.typing.ArrayLike | None, targets: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """weights as (B, T); without any, those that make the sum of the losses their mean."""
    if weights is None:
        return mean_weights(targets, dtype)
    try:
        return np.broadcast_to(np.asarray(weights, dtype), targets.shape)
    except (ValueError, TypeError):
        raise ValueError(
            f"weights={shown(weights)}: expected numbers, one for each target, {targets.shape}"
        ) from None


def _check_range(name: str, array: np.ndarray, config: Config) -> None:
    outside = (array < 0) | (array >= config.vocab_size)
    if outside.any():
        raise ValueError(
            f"{name} contain {array[outside][0]}, outside the vocabulary of {config.vocab_size}:"
            " was the text encoded with this model's tokenizer?"
        )


def _integers(name: str, values: Ids) -> np.ndarray:
    """(B, T) int64 from a list, (T,) or (B, T)."""
    if isinstance(values, (str, bytes)):
        raise ValueError(f"{name} are {shown(values)}: encode the text first, tokenizer.encode(…)")
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} have rows of different lengths: pad them, or pass one at a time"
        ) from None
    if array.size and (array.dtype.kind not in "iu" or array.dtype == np.uint64):
        raise ValueError(f"{name} have dtype {array.dtype}: token ids are integers (int64)")
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} have shape {array.shape}: expected (T,) or (B, T)")
    return np.atleast_2d(array).astype(np.int64, copy=False)
