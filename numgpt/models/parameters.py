"""Named parameters, and their gradients, each as views on one flat buffer.

The optimizer, the gradient norm and the checkpoints see one long vector; the layers see matrices
with names. Gradients lie on a buffer of their own, which has a place for what trains and for
nothing else.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from numgpt.runtime import (
    NOWHERE,
    Accumulator,
    FewerBits,
    SideBySide,
    SumsSideBySide,
    Weight,
    add_into,
    empty,
)

Layout = Mapping[str, tuple[int, tuple[int, ...]]]  # name -> (offset in elements, shape)


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Place arrays of these shapes one after another: first all matrices, then all vectors.

    Weight decay treats the two differently, and so finds each kind in one piece.
    """
    offsets, offset = {}, 0
    for name in sorted(shapes, key=lambda name: len(shapes[name]) < 2):  # stable within a kind
        offsets[name] = offset
        offset += math.prod(shapes[name])
    return {name: (offsets[name], tuple(shape)) for name, shape in shapes.items()}


def matching_names(patterns: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that are, or fit, one of the patterns ("wte", "h.0.*"); without any all of them.
    Raises ValueError for a pattern that fits none."""
    names, found = list(names), set[str]()
    for pattern in patterns or ("*",):
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            near = difflib.get_close_matches(pattern, names, 3, cutoff=0)
            raise ValueError(f"no parameter is named {pattern!r}: there are {', '.join(near)}")
        found.update(fitting)
    return found


def size_of(layout: Layout) -> int:
    """How many numbers a layout has."""
    return sum(math.prod(shape) for _, shape in layout.values())


def _views(flat: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    return {
        name: flat[offset : offset + math.prod(shape)].reshape(shape)
        for name, (offset, shape) in layout.items()
    }


def _joined(flat: np.ndarray, layout: Layout, names: Sequence[str]) -> np.ndarray | None:
    """Matrices (O_1, I), (O_2, I), … (or vectors) that lie one after another as one, (ΣO, I); None
    where they don't, as in a file that orders them by name."""
    offsets, shapes = zip(*(layout[name] for name in names), strict=True)
    start = end = offsets[0]
    for offset, shape in zip(offsets, shapes, strict=True):
        if offset != end or shape[1:] != shapes[0][1:]:
            return None
        end += math.prod(shape)
    return flat[start:end].reshape(-1, *shapes[0][1:])


class Parameters(Mapping[str, np.ndarray]):
    """A read-only mapping from names to arrays.

    The arrays are writable views on `flat`, in the places that `layout` gives; or each is in memory
    of its own, and flat is None.
    """

    def __init__(
        self, flat: np.ndarray | None, layout: Layout, arrays: dict[str, np.ndarray] | None = None
    ):
        self.flat = flat
        self.layout = layout
        self._arrays = (arrays or {}) if flat is None else _views(flat, layout)

    @classmethod
    def separate(cls, arrays: Mapping[str, np.ndarray | Weight]) -> Parameters:
        """Parameters that are arrays of their own; the layout is what gradients will have."""
        layout = layout_of({name: array.shape for name, array in arrays.items()})
        own = {
            name: array if isinstance(array, Weight) else np.ascontiguousarray(array)
            for name, array in arrays.items()
        }
        return cls(None, layout, own)  # type: ignore[arg-type]

    @classmethod
    def empty(cls, layout: Layout, dtype: np.typing.DTypeLike) -> Parameters:
        """Uninitialised parameters in the given layout."""
        return cls(empty(size_of(layout), dtype), layout)

    @property
    def trainable(self) -> Layout:
        """The layout of what is not kept in fewer bits."""
        shapes = {n: array.shape for n, array in self.items() if not isinstance(array, Weight)}
        return self.layout if len(shapes) == len(self) else layout_of(shapes)

    @property
    def dtype(self) -> np.dtype:
        """What the model computes in."""
        return next(iter(self.values())).dtype

    @property
    def nbytes(self) -> int:
        """The memory of all of them."""
        return sum(array.nbytes for array in self.values())

    def beside(self, names: Sequence[str], transposed: bool = False) -> np.ndarray | Weight:
        """[W₁ W₂ …] (I, ΣO), of matrices W (I, O) or, transposed, Wᵀ (O, I): an array where there
        is one matrix, or where they lie one after another in memory."""
        if len(names) == 1:
            return self[names[0]].T if transposed else self[names[0]]
        if transposed and self.flat is not None:
            joined = _joined(self.flat, self.layout, names)
            if joined is not None:
                return joined.T
        matrices = [self[name] for name in names]
        if transposed and isinstance(matrices[0], FewerBits):
            whole = FewerBits.one_above_another(matrices)
            if whole is not None:
                return whole.T
        return SideBySide([matrix.T if transposed else matrix for matrix in matrices])

    def pieces(self, layout: Layout) -> Iterator[tuple[slice, np.ndarray, int]]:
        """The parameters of a layout, piece by piece: its slice of the layout, the weights as a
        vector, their number of axes. Parameters of as many axes that are neighbours both there and
        here are one piece."""
        if self.flat is None:
            for name, (offset, shape) in layout.items():
                yield slice(offset, offset + math.prod(shape)), self[name].reshape(-1), len(shape)
            return
        pieces: list[tuple[slice, slice, int]] = []  # there, here, axes
        for name, (offset, shape) in sorted(layout.items(), key=lambda item: item[1][0]):
            size, start = math.prod(shape), self.layout[name][0]
            there, here = slice(offset, offset + size), slice(start, start + size)
            if pieces and pieces[-1][1:] == (slice(pieces[-1][1].start, start), len(shape)):
                before = pieces.pop()
                there, here = slice(before[0].start, there.stop), slice(before[1].start, here.stop)
            pieces.append((there, here, len(shape)))
        for there, here, axes in pieces:
            yield there, self.flat[here], axes

    def __reduce__(self) -> tuple[type[Parameters], tuple]:
        # A copy, or what pickle restores, has views on a buffer of its own.
        return Parameters, (self.flat, self.layout, None if self.flat is not None else self._arrays)

    def __repr__(self) -> str:
        count = sum(array.size for array in self.values())
        return f"<Parameters: {len(self)} arrays, {count:,} numbers of {self.dtype}>"

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Gradients(Mapping[str, np.ndarray]):
    """Σ of contributions by name: the first is written, the next are added, none is 0.

    `gradients[name]` and `gradients.flat` are the sums as they stand; a name that is frozen has no
    place here: `name in gradients` is False.
    """

    def __init__(self, layout: Layout, dtype: np.typing.DTypeLike):
        self.layout = layout
        self._flat = empty(size_of(layout), dtype)
        self._arrays = _views(self._flat, layout)
        self._written: set[str] = set()

    def accumulator(self, name: str) -> Accumulator:
        """Where contributions to a parameter's gradient go: nowhere, if it is frozen."""
        if name not in self._arrays:
            return NOWHERE
        return Accumulator(self._arrays[name], (name,), self._written)

    def beside(
        self, names: Sequence[str], columns: Sequence[slice], transposed: bool = False
    ) -> Accumulator:
        """Where contributions to [dW₁ dW₂ …] (I, ΣO) go, of the matrices that Parameters.beside
        has side by side, or to [db₁ db₂ …] (ΣO,); each parameter has these columns.  One sum where
        they lie one after another, all train, and all or none have got a contribution."""
        if not names:
            return NOWHERE
        sums = [self.accumulator(name) for name in names]
        sums = [one.T for one in sums] if transposed else sums
        if len(sums) == 1:
            return sums[0]
        states = {(one.needed, n in self._written) for one, n in zip(sums, names, strict=True)}
        if len(states) == 1 and sums[0].needed:
            array = _joined(self._flat, self.layout, names)
            if array is not None and (transposed or array.ndim == 1):
                whole = Accumulator(array, tuple(names), self._written)
                return whole.T if transposed else whole
        return SumsSideBySide([*zip(columns, sums, strict=True)])

    @property
    def flat(self) -> np.ndarray:
        """All sums as one vector, in the layout's order."""
        self._fill(self._arrays)
        return self._flat

    @flat.setter
    def flat(self, values: np.ndarray) -> None:
        self.flat[...] = values

    @property
    def dtype(self) -> np.dtype:
        return self._flat.dtype

    def clear(self) -> None:
        """No contributions: all sums are 0 again."""
        self._written.clear()

    def merge(self, other: Gradients) -> None:
        """Add the sums of other sequences of the batch, in the same layout."""
        if len(self._written) == len(other._written) == len(self.layout):
            add_into(self._flat, other._flat)
            return
        for name in other._written:
            self.accumulator(name).add(other._arrays[name])

    def _fill(self, names: Iterable[str]) -> None:
        """Write the zeros of those that have got no contribution."""
        for name in set(names) - self._written:
            self._arrays[name].fill(0)
            self._written.add(name)

    def __getstate__(self) -> dict:
        return {"layout": self.layout, "flat": self.flat}

    def __setstate__(self, state: dict) -> None:
        self.layout, self._flat = state["layout"], state["flat"]
        self._arrays = _views(self._flat, self.layout)
        self._written = set(self._arrays)

    def __repr__(self) -> str:
        return f"<Gradients: {len(self)} arrays, {self._flat.size:,} numbers of {self._flat.dtype}>"

    def __getitem__(self, name: str) -> np.ndarray:
        self._fill([name])
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
