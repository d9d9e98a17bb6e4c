"""A model in files of any format: found, checked, and brought into one flat buffer.

Each format has its own names for the parameters, and lays some of them out differently. A weight
mapping says how; what is done with it is the same for all.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.formats.family import Family
from numgpt.formats.kept import KeptTensor
from numgpt.formats.tensors import StoredTensor
from numgpt.messages import shown
from numgpt.models.config import Config
from numgpt.models.modules import SCORE
from numgpt.models.parameters import Parameters
from numgpt.options import OptionError
from numgpt.runtime import DTYPES, FewerBits, Weight
from numgpt.runtime.fewer_bits import KINDS
from numgpt.tokenizer import BaseTokenizer

# What DataParallel and torch.compile put before each tensor's name.
_WRAPPERS = ("module.", "_orig_mod.")
# Heads for values, classes or answers, of models that were more than language models.
_OTHER_HEADS = frozenset(("v_head", "score", "classifier", "value_head", "qa_outputs"))
_OTHER_HEADS |= {"multiple_choice_head"}
COMPARED = 1 << 20  # numbers at a time


class WeightMapping:
    """How a format names and lays out the parameters of a model.  This one: as Hugging Face."""

    in_order = True  # every tensor is laid out as our parameter is
    transposes_linear = False  # linear layers that are (in, out) here are (out, in) there
    lacks_biases = False  # biases that are 0 may be left out

    def __init__(self, family: Family, config: Any):
        self.family = family
        self.config = config

    def our_name(self, stored: str) -> str | None:
        """The name in the file -> ours; None for what is not a parameter."""
        return self.family.our_name(stored, self.config)

    def stored_name(self, name: str) -> str:
        """Our name -> the name in the file, for errors."""
        return self.family.stored_name(name)

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter of this shape."""
        return shape[::-1] if self.transposes_linear and self.family.is_transposed(name) else shape

    def as_stored(self, name: str, array: np.ndarray) -> np.ndarray:
        """A view of our array whose C order is the file's."""
        return array.T if self.transposes_linear and self.family.is_transposed(name) else array


@dataclass
class Source:
    """A model in files: what it is, where its tensors are, how they are arranged."""

    path: Path  # for errors: the file or directory with the weights, …
    config_path: Path  # … and the file that says of what sizes they are
    family: Family
    config: Config
    tensors: Iterable[tuple[str, StoredTensor]]  # under the names in the files
    mapping: WeightMapping
    read_tokenizer: Callable[[], BaseTokenizer]
    generation: dict[str, Any] = field(default_factory=dict)  # of generation_config.json


def score_head(source: Source) -> StoredTensor | None:
    """The head of a reward model: that of a classifier of one class (…ForSequenceClassification),
    which has no unembedding of its own."""
    shape = 1, source.config.width
    heads = (tensor for name, tensor in source.tensors if without_wrappers(name) == SCORE)
    return next((tensor for tensor in heads if tensor.shape == shape), None)


def without_wrappers(stored: str) -> str:
    """The name of a tensor without what DataParallel and torch.compile put before it."""
    while stored.startswith(_WRAPPERS):
        stored = stored[stored.index(".") + 1 :]
    return stored


def _untie(source: Source) -> None:
    """Give the model an unembedding of its own where its config says that it has none, and the file
    has one that is not the embedding's table; and none to a reward model without one."""
    config = source.config
    unembedding, table = _tables(source)
    if unembedding is None and score_head(source) is not None:
        config.tie_word_embeddings = True  # a reward model predicts no tokens
    if not config.tie_word_embeddings:
        return
    if unembedding is None or table is None or _equal(unembedding, table):
        return
    warnings.warn(
        f"{unembedding} is not the embedding's table, though {source.config_path.name} says"
        " tie_word_embeddings=true: it is read as the model's own unembedding",
        stacklevel=5,
    )
    config.tie_word_embeddings = False


def _tables(source: Source) -> tuple[StoredTensor | None, StoredTensor | None]:
    """The unembedding of its own that the file of a tied model has, and the embedding's table."""
    tied, mapping = copy.copy(source.config), copy.copy(source.mapping)
    setattr(tied, tied.layers_field, 1)  # (which may be absurd)
    untied = mapping.config = copy.copy(tied)
    untied.tie_word_embeddings = False
    model = source.family.model
    heads = model.shapes(untied).keys() - model.shapes(tied).keys()
    head = next(iter(heads), None)  # none in a family that has no other
    found = {mapping.our_name(without_wrappers(name)): tensor for name, tensor in source.tensors}
    return found.get(head), found.get(next(iter(model.embeddings), None))


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two matrices are stored with the same values."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if (a.path, a.offset, a.strides) == (b.path, b.offset, b.strides):
        return True
    first, second = a.raw.reshape(-1), b.raw.reshape(-1)
    parts = (slice(n, n + COMPARED) for n in range(0, len(first), COMPARED))
    return all(np.array_equal(first[part], second[part]) for part in parts)


def read_parameters(
    source: Source,
    report: Callable[[str], None] = lambda name: None,
    mmap: bool = True,
    dtype: str = "float32",
) -> Parameters:
    """All parameters in float32, or the matrices in fewer bits (runtime/fewer_bits.py); `report` is
    called with each name as its turn comes.

    With mmap, weights that lie in one file, in float32, in our layout and without gaps stay
    memory-mapped, copy on write: they are read through the system's file cache, and take memory of
    their own only where training changes them. Others are converted one tensor at a time. Raises
    ValueError naming file and tensor where one is missing, of another shape, or not finite.
    """
    if dtype not in DTYPES:
        raise OptionError(f"{{dtype}}: expected {' or '.join(DTYPES)}", dtype=dtype)
    _untie(source)
    found = _find(source)
    if dtype in KINDS:
        return _in_fewer_bits(source, found, KINDS[dtype], report, mmap)
    parameters = _mapped(source, found) if mmap else None
    with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is refused at the end
        if parameters is None:
            parameters = Parameters.empty(source.family.model.layout(source.config), np.float32)
            for name, array in parameters.items():
                report(name)
                _read_into(array, name, source, found)
        _check_finite(parameters, found)
    return parameters


def _read_into(
    array: np.ndarray, name: str, source: Source, found: Mapping[str, StoredTensor]
) -> None:
    if name in found:
        found[name].read_into(source.mapping.as_stored(name, array))
    else:
        array.fill(0)


def _in_fewer_bits(
    source: Source,
    found: Mapping[str, StoredTensor],
    kind: type[FewerBits],
    report: Callable[[str], None],
    mmap: bool,
) -> Parameters:
    """One tensor at a time in float32, or mapped, where they are stored as they are wanted.
    Vectors stay in float32, and what is added and not multiplied: the table of positions."""
    family, parameters = source.family, dict[str, np.ndarray | Weight]()
    library = kind.multiplier()
    for name, shape in family.model.shapes(source.config).items():
        report(name)
        tensor = found.get(name)
        if isinstance(tensor, KeptTensor) and tensor.kind is kind:
            rows = tensor.kept() if mmap else copy.deepcopy(tensor.kept())
            _check_finite({name: rows}, found)
            parameters[name] = rows.T if tensor.transposed else rows
            continue
        array = np.empty(shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            _read_into(array, name, source, found)
            _check_finite({name: array}, found)
        if len(shape) < 2 or name in family.model.embeddings[1:]:
            parameters[name] = array
        elif family.is_transposed(name):  # (I, O), where rows are outputs
            parameters[name] = kind.rounded(np.ascontiguousarray(array.T), library).T
        else:
            parameters[name] = kind.rounded(array, library)
    return Parameters.separate(parameters)


def _find(source: Source) -> dict[str, StoredTensor]:
    """Our names -> the stored tensors, all of them, of the right shapes, without a surplus."""
    stored, mapping = list(source.tensors), source.mapping
    layers = source.config.layers
    if layers > len(stored):  # absurd sizes are refused before anything of that size is made
        raise ValueError(
            f"{source.config_path} says {source.config.layers_field}={layers}, the weights have"
            f" {len(stored)} tensors"
        )
    shapes = source.family.model.shapes(source.config)
    found: dict[str, StoredTensor] = {}
    unused, head = [], score_head(source)
    for stored_name, tensor in stored:
        if tensor is head:
            continue
        bare = without_wrappers(stored_name)
        if (name := mapping.our_name(bare)) is None:
            continue
        if name not in shapes and bare.split(".")[0] in _OTHER_HEADS:
            unused.append(stored_name)
            continue
        what = f"{tensor.path}: tensor {shown(stored_name)}"
        if name not in shapes:
            raise ValueError(f"{what} has no place in this model")
        if name in found:
            raise ValueError(f"{what} is there twice")
        expected = mapping.stored_shape(name, shapes[name])
        if tensor.shape != expected:
            raise ValueError(
                f"{what} has shape {list(tensor.shape)}, {source.config_path.name} asks for"
                f" {list(expected)}"
            )
        if not tensor.is_float:
            raise ValueError(
                f"{what} is stored as {tensor.dtype}, weights are F32, F16, BF16 or quantised"
            )
        found[name] = tensor
    if unused:
        warnings.warn(
            f"{source.path}: {', '.join(sorted(unused))}: of a head that a language model does not"
            " use; left out",
            stacklevel=4,
        )
    table = next(iter(source.family.model.embeddings), "")
    if source.config.tie_word_embeddings and table not in found:
        unembedding, _ = _tables(source)  # some files name the one matrix so
        if unembedding is not None and unembedding.shape == mapping.stored_shape(
            table, shapes[table]
        ):
            found[table] = unembedding
    missing = [name for name in shapes if name not in found]
    if mapping.lacks_biases:
        missing = [name for name in missing if not name.endswith(".bias")]
    if missing:
        raise ValueError(
            f"{source.path}: the weights lack {shown(mapping.stored_name(missing[0]))}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
        )
    return found


def _mapped(source: Source, found: Mapping[str, StoredTensor]) -> Parameters | None:
    """The parameters as one mapped piece of the file, where they lie there as we want them."""
    tensors = sorted(found.values(), key=lambda tensor: tensor.offset)
    if os.name == "nt" or not source.mapping.in_order:
        return None  # on Windows a mapped file could not be replaced
    if any(tensor.dtype != "F32" or tensor.strides is not None for tensor in tensors):
        return None
    start = end = tensors[0].offset
    for tensor in tensors:
        if tensor.offset != end or tensor.path != tensors[0].path:
            return None
        end += tensor.nbytes
    if start % 4:
        return None
    shape = ((end - start) // 4,)
    flat = np.memmap(tensors[0].path, np.float32, mode="c", offset=start, shape=shape)
    layout = {name: ((t.offset - start) // 4, t.shape) for name, t in found.items()}
    return Parameters(flat.view(np.ndarray), layout)


def _check_finite(
    parameters: Mapping[str, np.ndarray | Weight], found: Mapping[str, StoredTensor]
) -> None:
    for name, array in parameters.items():
        if not is_finite(array):
            raise ValueError(f"{found[name]} holds NaN or infinity; download it again")


def is_finite(array: np.ndarray | Weight) -> bool:
    """Whether no value is NaN or infinite."""
    if isinstance(array, Weight):
        return (array if isinstance(array, FewerBits) else array.T).is_finite()  # type: ignore
    row = np.asarray(array).reshape(-1)
    # The product runs at memory speed, and is finite unless a value is not, or the sum overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(row @ row) or np.isfinite(row).all())
