"""Named parameters as views on one flat buffer.

The optimizer, the gradient norm and the checkpoints see one long vector; the layers see matrices
with names. Gradients live on a second buffer of the same layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from numgpt.runtime import empty

Layout = Mapping[str, tuple[int, tuple[int, ...]]]  # name -> (offset in elements, shape)


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Place arrays of these shapes behind each other: first all matrices, then all vectors.

    Weight decay treats the two differently, and so finds each kind in one piece.
    """
    offsets, offset = {}, 0
    for name in sorted(
        shapes, key=lambda name: len(shapes[name]) < 2
    ):  # stable: keeps the order within a kind
        offsets[name] = offset
        offset += math.prod(shapes[name])
    return {name: (offsets[name], tuple(shape)) for name, shape in shapes.items()}


class Parameters(Mapping[str, np.ndarray]):
    """A read-only mapping from names to arrays; the arrays are writable views on `flat`."""

    def __init__(self, flat: np.ndarray, layout: Layout):
        self.flat = flat
        self.layout = layout
        self._views = {
            name: flat[offset : offset + math.prod(shape)].reshape(shape)
            for name, (offset, shape) in layout.items()
        }
        self._under: dict[str, dict[str, np.ndarray]] = {}
        self._joined: dict[tuple[str, ...], np.ndarray | None] = {}

    @classmethod
    def empty(cls, layout: Layout, dtype: np.typing.DTypeLike) -> Parameters:
        """Uninitialised parameters in the given layout."""
        size = sum(math.prod(shape) for _, shape in layout.values())
        return cls(empty(size, dtype), layout)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix`, under the rest of their names."""
        if prefix not in self._under:
            self._under[prefix] = {
                name[len(prefix) :]: array
                for name, array in self._views.items()
                if name.startswith(prefix)
            }
        return self._under[prefix]

    def joined(self, *names: str) -> np.ndarray | None:
        """Matrices (O_1, I), (O_2, I), … that lie one behind the other as one, (ΣO, I); None where
        they don't, as in a file that orders them by name."""
        if names not in self._joined:
            places = [self.layout[name] for name in names]
            start, width = places[0][0], places[0][1][1]
            end = start
            for offset, (rows, columns) in places:
                end = offset + rows * columns if (offset, columns) == (end, width) else -1
            behind = end > start
            self._joined[names] = self.flat[start:end].reshape(-1, width) if behind else None
        return self._joined[names]

    def __reduce__(self) -> tuple[type[Parameters], tuple[np.ndarray, Layout]]:
        # A copy, or what pickle restores, has views on a buffer of its own.
        return Parameters, (self.flat, self.layout)

    def __repr__(self) -> str:
        return f"<Parameters: {len(self)} arrays, {self.flat.size:,} numbers of {self.flat.dtype}>"

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)
