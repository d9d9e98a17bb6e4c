"""Models that were saved as they are kept in memory, in fewer bits: loading them so maps them.

save_pretrained of a model in bfloat16 or int8 writes model.safetensors with

    NAME          the numbers of a matrix, as runtime/fewer_bits.py has them: rows (R, C), one for
                  each output, or where oneDNN multiplies, packed as runtime/onednn.py says
    NAME.scales   (R,), and
    NAME.shift    (R,), in float32, of int8

and everything else in float32 under its own name. config.json says "quantization_config":
{"quant_method": "numgpt", "kind": …}, by which other programs know that it is nothing for them.
Matrices that end at a multiple of 64 bytes come first, then what is in float32, then the others; in
the order of the passes, so that what is one product lies side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.formats.family import Family
from numgpt.formats.tensors import DTYPES, StoredTensor
from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError
from numgpt.runtime import FewerBits, Weight
from numgpt.runtime.fewer_bits import KINDS
from numgpt.runtime.stored_rows import packed_shape

METHOD = "numgpt"
CODES = {"bfloat16": "BF16", "int8": "I8"}  # of a kind's numbers


def as_kept(model: LanguageModel, family: Family) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a model in fewer bits, by their names in a file, and what config.json says."""
    matrices, others = dict[str, FewerBits](), dict[str, np.ndarray]()
    for name, array in model.parameters.items():
        stored = family.stored_name(name)
        if isinstance(array, Weight):
            matrices[stored] = array if isinstance(array, FewerBits) else array.T  # type: ignore
        else:
            others[stored] = array
    kind = type(next(iter(matrices.values())))
    arrays = {name: rows.data for name, rows in matrices.items()}
    for part in kind.parts:
        arrays |= {f"{name}.{part}": rows.vectors()[part] for name, rows in matrices.items()}
    arrays |= others
    # A float32 begins at a multiple of its size: behind those that end at one, before the others.
    order = {name: rows.data.nbytes % 64 and 2 for name, rows in matrices.items()}
    arrays = {name: arrays[name] for name in sorted(arrays, key=lambda name: order.get(name, 1))}
    settings = {"quant_method": METHOD, "kind": kind.kind}
    return arrays, {"quantization_config": settings}


class KeptTensor(StoredTensor):
    """A matrix that is kept in fewer bits, mapped."""

    def __init__(
        self,
        stored: StoredTensor,
        kind: type[FewerBits],
        arrays: dict[str, np.ndarray],
        shape: tuple[int, int],  # of the rows
        transposed: bool,
    ):
        whole = shape[::-1] if transposed else shape
        super().__init__(stored.path, stored.name, kind.kind, whole, stored.offset)
        self.kind, self.arrays, self.of_rows, self.transposed = kind, arrays, shape, transposed

    def kept(self, multiplied: bool = True) -> FewerBits:
        """The rows, packed where this machine's library multiplies them, which may be a copy."""
        return self.kind.of_arrays(self.arrays, self.of_rows, multiplied)

    @property
    def raw(self) -> np.ndarray:
        """What the stored numbers stand for, in float32."""
        rows = self.kept(multiplied=False)
        return np.asarray(rows.T if self.transposed else rows)


def read_kept(
    tensors: Sequence[tuple[str, StoredTensor]],
    settings: Mapping[str, Any],
    family: Family,
    config: Any,
) -> list[tuple[str, StoredTensor]]:
    """The tensors of such a file, its matrices as KeptTensors.  Raises ValueError naming file and
    tensor where one is not as it should be."""
    kind = KINDS.get(str(settings.get("kind")))
    if kind is None:
        kinds = " or ".join(KINDS)
        raise OptionError(f"{{kind}}: expected {kinds}", kind=settings.get("kind"))
    stored, shapes = dict(tensors), family.model.shapes(config)
    # Each file is mapped once: what are neighbours in it are neighbours in memory.
    paths = {tensor.path for tensor in stored.values()}
    files = {path: np.memmap(path, np.uint8, mode="r").view(np.ndarray) for path in paths}
    found, parts = dict[str, StoredTensor](), set[str]()
    for name, tensor in stored.items():
        ours = family.our_name(name, config)
        if tensor.dtype != CODES[kind.kind] or ours not in shapes or len(shapes[ours]) != 2:
            continue
        outputs, width = shapes[ours][::-1] if family.is_transposed(ours) else shapes[ours]
        shape = outputs, width
        arrays = {"data": _array(tensor, files)}
        expected = [shape, packed_shape(shape, arrays["data"].itemsize)]
        if tensor.shape not in expected:
            raise ValueError(
                f"{tensor} has shape {list(tensor.shape)}, config.json asks for"
                f" {' or '.join(map(str, map(list, expected)))}"
            )
        for part in kind.parts:
            vector = stored.get(f"{name}.{part}")
            if vector is None or (vector.dtype, vector.shape) != ("F32", (outputs,)):
                raise ValueError(
                    f"{tensor} needs {shown(f'{name}.{part}')}, F32 of shape [{outputs}]; save it"
                    " again"
                )
            arrays[part] = _array(vector, files)
            parts.add(vector.name)
        found[name] = KeptTensor(tensor, kind, arrays, shape, family.is_transposed(ours))
    if not found:
        raise OptionError("{kind}: no matrix is stored so", kind=kind.kind)
    return [(name, found.get(name, tensor)) for name, tensor in tensors if name not in parts]


def _array(tensor: StoredTensor, files: dict[Path, np.ndarray]) -> np.ndarray:
    piece = files[tensor.path][tensor.offset : tensor.offset + tensor.nbytes]
    array = piece.view(DTYPES[tensor.dtype]).reshape(tensor.shape)
    return np.require(array, requirements="A")
