"""The Hugging Face directory layout: config.json, weights (one file or shards), tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.formats import gpt2
from numgpt.formats.names import resolve
from numgpt.formats.safetensors import (
    StoredTensor,
    read_safetensors,
    storage_dtype,
    write_safetensors,
)
from numgpt.models.language_model import LanguageModel
from numgpt.models.parameters import Parameters
from numgpt.runtime.files import replacing
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer import load_tokenizer as load_tokenizer_files

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FAMILIES = {"gpt2": gpt2}  # by config.json's model_type


def load(name_or_path: str | os.PathLike) -> tuple[LanguageModel, BaseTokenizer]:
    """A model and its tokenizer: from a directory, by a shipped name, or by a hub id.

    Raises FileNotFoundError or ValueError, in one line that names what is wrong and what to do.
    """
    directory = resolve(name_or_path)
    model, tokenizer = load_model(directory), load_tokenizer_files(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model only"
            f" {model.config.vocab_size}: they don't belong together"
        )
    return model, tokenizer


def load_tokenizer(name_or_path: str | os.PathLike) -> BaseTokenizer:
    """A tokenizer: from a directory, by a shipped name, or by a hub id."""
    return load_tokenizer_files(resolve(name_or_path))


def load_model(
    name_or_path: str | os.PathLike, expected: type[LanguageModel] = LanguageModel
) -> LanguageModel:
    """A model: from a directory, by a shipped name, or by a hub id; weights in float32.

    Weights stored in float32 stay memory-mapped, copy on write: they are read through the system's
    file cache, and take memory of their own only where training changes them.
    """
    directory = resolve(name_or_path)
    path = directory / "config.json"
    fields = _read_json(path)
    model_type = fields.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"{path}: model_type={model_type!r} is not supported, only {', '.join(FAMILIES)}"
        )
    if not issubclass(family.MODEL, expected):
        raise ValueError(f"{path} describes a {family.MODEL.__name__}, not a {expected.__name__}")
    try:
        config = family.config_from(fields)
        config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors = _find_tensors(directory, family, config)
    return family.MODEL(config, parameters=_mapped(tensors) or _copied(family, config, tensors))


def save_model(model: LanguageModel, directory: str | os.PathLike, dtype: str = "float32") -> None:
    """Write config.json and model.safetensors, in the names and layout that transformers loads."""
    storage_dtype(dtype)  # refuses a bad one before anything is written
    family = next(family for family in FAMILIES.values() if isinstance(model, family.MODEL))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {family.stored_name(name): array for name, array in model.parameters.items()}
    write_safetensors(directory / WEIGHTS_FILE, tensors, dtype=dtype)
    (directory / INDEX_FILE).unlink(missing_ok=True)  # of shards that this file replaces
    fields = family.config_fields(model.config) | {"dtype": dtype}
    with replacing(directory / "config.json") as file:
        file.write((json.dumps(fields, indent=2) + "\n").encode())


def _find_tensors(directory: Path, family: Any, config: Any) -> dict[str, StoredTensor]:
    """Our names -> the stored tensors, all of them, of the right shapes, without a surplus."""
    files = {path: read_safetensors(path)[0] for path in _weight_files(directory)}
    count = sum(map(len, files.values()))
    if config.n_layer > count:  # absurd sizes are refused before anything of that size is made
        raise ValueError(
            f"{directory}: config.json says n_layer={config.n_layer},"
            f" the weights have {count} tensors"
        )
    shapes = family.MODEL.shapes(config)
    found: dict[str, StoredTensor] = {}
    for path, tensors in files.items():
        for stored_name, tensor in tensors.items():
            name = family.our_name(stored_name, config)
            if name is None:
                continue
            if name not in shapes:
                raise ValueError(f"{path}: tensor {stored_name!r} has no place in this model")
            if name in found:
                raise ValueError(f"{path}: tensor {stored_name!r} is there twice")
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"{path}: tensor {stored_name!r} has shape {list(tensor.shape)},"
                    f" config.json asks for {list(shapes[name])}"
                )
            if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(
                    f"{path}: tensor {stored_name!r} is stored as {tensor.dtype}, weights are"
                    " F32, F16 or BF16"
                )
            found[name] = tensor
    if missing := [name for name in shapes if name not in found]:
        raise ValueError(
            f"{directory}: the weights lack {family.stored_name(missing[0])!r}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
        )
    return found


def _weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    if (path := directory / WEIGHTS_FILE).is_file():
        return [path]
    if not (index := directory / INDEX_FILE).is_file():
        raise FileNotFoundError(
            f"no weights in {directory}: expected {WEIGHTS_FILE} or {INDEX_FILE}"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is missing")
    paths = []
    for name in sorted(set(map(str, weight_map.values()))):
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(
                f"{index} names the shard {name!r}, which is not there: copy or download it again"
            )
        paths.append(path)
    return paths


def _mapped(tensors: Mapping[str, StoredTensor]) -> Parameters | None:
    """The parameters as one mapped piece of the file, where they lie there in float32 and without
    gaps."""
    raws = [tensor.raw for tensor in tensors.values()]
    if os.name == "nt" or any(tensor.dtype != "F32" for tensor in tensors.values()):
        return None  # on Windows a mapped file could not be replaced
    addresses = [raw.__array_interface__["data"][0] for raw in raws]
    first, last = (
        min(addresses),
        max(a + raw.nbytes for a, raw in zip(addresses, raws, strict=True)),
    )
    one_file = len({tensor.path for tensor in tensors.values()}) == 1
    if not one_file or last - first != sum(raw.nbytes for raw in raws) or first % 4:
        return None
    path = next(iter(tensors.values())).path
    whole = raws[0]
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + first - whole.__array_interface__["data"][0]
    if offset % 4:
        return None
    flat = np.memmap(path, np.float32, mode="c", offset=offset, shape=((last - first) // 4,))
    layout = {
        name: ((address - first) // 4, tensor.shape)
        for (name, tensor), address in zip(tensors.items(), addresses, strict=True)
    }
    parameters = Parameters(flat.view(np.ndarray), layout)
    _check_finite(parameters, tensors)
    return parameters


def _copied(family: Any, config: Any, tensors: Mapping[str, StoredTensor]) -> Parameters:
    """The parameters converted to float32, one tensor at a time."""
    parameters = Parameters.empty(family.MODEL.layout(config), np.float32)
    for name, array in parameters.items():
        tensors[name].read_into(array)
    _check_finite(parameters, tensors)
    return parameters


def _check_finite(parameters: Parameters, tensors: Mapping[str, StoredTensor]) -> None:
    for name, array in parameters.items():
        row = array.reshape(-1)
        # The product runs at memory speed, and is finite unless a value is not, or the sum
        # overflows.
        if not np.isfinite(row @ row) and not np.isfinite(row).all():
            tensor = tensors[name]
            raise ValueError(
                f"{tensor.path}: tensor {tensor.name!r} holds NaN or infinity; download it again"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}: is it a model directory in the Hugging Face layout?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy or download it again") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return fields
