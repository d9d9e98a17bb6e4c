"""Checks of a config's fields, which come from files: each raises ValueError naming the field."""

from __future__ import annotations

import numbers
import sys

from numgpt.messages import shown

LARGEST = 1 << 128  # whole numbers from it on are no sizes
LARGEST_ID = 1 << 31


def require_whole(config: object, *names: str, optional: bool = False) -> None:
    """Whole numbers from 1 up; with `optional` also None."""
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        if type(value) is not int or not 1 <= value < LARGEST:
            raise ValueError(f"{name}={shown(value)}: expected a whole number from 1 up")


def require_number(
    config: object, *names: str, least: float | None = None, below: float = sys.float_info.max
) -> None:
    """Numbers above 0, or from `least` up, and below `below`."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        enough = number and (value > 0 if least is None else value >= least)
        if not enough or not value < below:
            expected = "a number above 0" if least is None else f"{least} or more"
            if below < sys.float_info.max:
                expected = f"{least} <= {name} < {below}"
            raise ValueError(f"{name}={shown(value)}: expected {expected}")


def require_booleans(config: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={shown(getattr(config, name))}: expected true or false")


def require_ids(config: object, *names: str) -> None:
    """A token id, several, or none."""
    for name in names:
        value = getattr(config, name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(id) is int and 0 <= id < LARGEST_ID for id in ids):
            raise ValueError(f"{name}={shown(value)}: expected a token id, several, or none")
