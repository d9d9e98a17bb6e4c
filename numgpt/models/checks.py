"""Checks of a config's fields, which come from files: each raises ValueError naming the field."""

from __future__ import annotations

import sys
from typing import Any


def require_whole(config: Any, *names: str, optional: bool = False) -> None:
    """Whole numbers from 1 up; with `optional` also None."""
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number from 1 up")


def require_number(
    config: Any, *names: str, least: float | None = None, below: float = sys.float_info.max
) -> None:
    """Numbers above 0, or from `least` up, and below `below`."""
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        enough = number and (value > 0 if least is None else value >= least)
        if not enough or not value < below:
            expected = "a number above 0" if least is None else f"{least} <= {name} < {below}"
            raise ValueError(f"{name}={value!r}: expected {expected}")


def require_booleans(config: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r}: expected true or false")


def require_ids(config: Any, *names: str) -> None:
    """A token id, several, or none."""
    for name in names:
        value = getattr(config, name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        whole = all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids)
        if not whole:
            raise ValueError(f"{name}={value!r}: expected a token id, several, or none")
