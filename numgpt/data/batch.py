"""What a step trains on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100  # the target of a token that the loss leaves out: layers' IGNORE_INDEX


class Batch(NamedTuple):
    ids: np.ndarray  # (B, T)
    targets: np.ndarray  # (B, T), each the token after the id at its place, or IGNORED
    tokens: int  # ids that are no padding
    numbers: np.ndarray = np.empty(0, np.int64)  # of its examples, or groups of them, in their set

    @property
    def counted(self) -> int:
        """How many targets count."""
        return int(np.count_nonzero(self.targets != IGNORED))
