"""Hugging Face's directory layout: config.json, weights (one file or shards), tokenizer.

Weights are in safetensors, or pickled by PyTorch as older repositories have them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numgpt.files import replacing_together
from numgpt.formats.families import FAMILIES, family_of
from numgpt.formats.kept import METHOD, as_kept, read_kept
from numgpt.formats.pytorch import read_pytorch
from numgpt.formats.safetensors import read_safetensors, storage_dtype, write_safetensors
from numgpt.formats.source import Source, WeightMapping, is_finite
from numgpt.formats.tensors import StoredTensor
from numgpt.messages import quoted, shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError
from numgpt.reading import about, naming, read_json_object
from numgpt.tokenizer import load_tokenizer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
_WEIGHTS = (WEIGHTS_FILE, INDEX_FILE, PICKLED_FILE, PICKLED_INDEX_FILE)
_SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")


def model_files(directory: Path) -> list[str]:
    """The names of the files in a directory that belong to a model in this layout."""
    names = (CONFIG_FILE, GENERATION_FILE, *_WEIGHTS)
    there = sorted(os.listdir(directory)) if directory.is_dir() else []
    return [name for name in there if name in names or _SHARD.fullmatch(name)]


def is_model(directory: Path) -> bool:
    """Whether a directory has both config.json and weights; many with a GGUF have the former."""
    return (directory / CONFIG_FILE).is_file() and any((directory / w).is_file() for w in _WEIGHTS)


def open_directory(directory: Path, named: Path | None = None) -> Source:
    """The model whose config.json is in the directory; with `named` its weights are those in that
    file, or in all shards where it is one of them."""
    path = directory / CONFIG_FILE
    fields = read_json_object(path)
    model_type = fields.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"{path}: model_type={shown(model_type)} is not supported, only {', '.join(FAMILIES)}"
        )
    quantised: Any = fields.get("quantization_config") or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if quantised and method != METHOD:
        raise ValueError(
            f"{path}: the weights are quantised ({shown(method or quantised)}), which is not read:"
            " take the model in bfloat16, float32 or GGUF, or save it dequantised (transformers'"
            " model.dequantize())"
        )
    # What ends a text can be in a file of its own, for generation.
    generation = directory / GENERATION_FILE
    for_generation = read_json_object(generation) if generation.is_file() else {}
    if (ends := for_generation.get("eos_token_id")) is not None:
        fields["eos_token_id"] = ends
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if fields.get(name) in (-1, []):  # as some files say that there is none
            fields[name] = None
    with about(path):
        config = family.config_from(fields)
        config.validate()
    tensors = [pair for file in _weight_files(directory, named) for pair in _read(file)]
    if method == METHOD:
        with about(f"{path}: quantization_config", OptionError):
            tensors = read_kept(tensors, quantised, family, config)
    mapping, tokenizer = WeightMapping(family, config), lambda: load_tokenizer(directory)
    return Source(directory, path, family, config, tensors, mapping, tokenizer, for_generation)


def save_model(
    model: LanguageModel,
    directory: str | os.PathLike,
    dtype: str | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> None:
    """Write config.json and model.safetensors, in the names and layout that transformers loads.

    Without a dtype the weights are written as the model has them: in float32, or in fewer bits, for
    numgpt alone (kept.py).

    Both change at once, with generation_config.json where the model has one; one that is there is
    told what ends a text now. All other files stay. `report` is called with each tensor's name as
    its turn comes.
    """
    kept = dtype is None and model.in_fewer_bits
    storage_dtype(dtype := dtype or "float32")  # refuses a bad one before anything is written
    if model.adapter is not None and not model.is_merged:
        raise ValueError(
            "the model has an adapter: save_adapter(directory) writes that, merge_adapter() first"
            " makes both one"
        )
    if not os.fspath(directory):
        raise ValueError('directory="": name a directory')
    family = family_of(model)
    tensors = {family.stored_name(name): array for name, array in model.parameters.items()}
    fields = family.config_fields(model.config) | {"dtype": dtype}
    if kept:
        told, parameters = report, tensors.keys()
        tensors, settings = as_kept(model, family)
        fields |= settings

        def report(name: str) -> None:
            if name in parameters:
                told(name)

    if model.head_parameters is not None:  # a reward model: its last token's score counts
        tensors.pop(family.stored_name("lm_head.weight"), None)
        tensors.pop(family.stored_name("lm_head"), None)
        tensors |= model.head_parameters
        kind = re.sub("LMHeadModel|ForCausalLM", "", fields["architectures"][0])
        fields["architectures"] = [f"{kind}ForSequenceClassification"]
        fields |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    for name, array in model.all_parameters.items():
        if not is_finite(array):
            raise ValueError(f"{name} holds NaN or infinity: such weights are not saved")
    with replacing_together(directory) as staged:
        write_safetensors(staged / WEIGHTS_FILE, tensors, dtype=dtype, report=report)
        write_json(staged / CONFIG_FILE, fields)
        ours, path = model.generation_config, Path(directory) / GENERATION_FILE
        if ours or path.is_file():
            ends = {name: fields[name] for name in ("bos_token_id", "eos_token_id")}
            both = ends | ours if ours else _old_fields(path) | ends
            write_json(staged / GENERATION_FILE, both)


def _old_fields(path: Path) -> dict[str, Any]:
    """What a file that is about to be replaced says, where it can be read."""
    try:
        return read_json_object(path)
    except ValueError:
        return {}


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """… as a file of its own, for people to read."""
    with naming(path):
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> list[tuple[str, StoredTensor]]:
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if "training" in metadata:
            raise ValueError(
                f"{path} is the state of a training run: name its directory,"
                f" {quoted(path.parent)}, for the model"
            )
        return list(tensors.items())
    return state_dict(path, read_pytorch(path))


def state_dict(path: Path, saved: Any) -> list[tuple[str, StoredTensor]]:
    """The tensors of a dict that was saved by PyTorch, by name."""
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds no state_dict, but a {type(saved).__name__}")
    for name, tensor in saved.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise ValueError(
                f"{path}: {str(name)[:60]!r} is no tensor: expected a state_dict, a plain dict"
                " of tensors"
            )
    return list(saved.items())


def _weight_files(directory: Path, named: Path | None) -> list[Path]:
    """The file of all weights, or the shards that an index names; safetensors first.  Those with
    the named file, where there is one."""
    for whole, index in ((WEIGHTS_FILE, INDEX_FILE), (PICKLED_FILE, PICKLED_INDEX_FILE)):
        files = []
        if (path := directory / whole).is_file():
            files = [path]
        elif (path := directory / index).is_file():
            files = _shards(path)
        if files and named in (None, *files):
            return files
    if named is not None:
        return [named]
    raise FileNotFoundError(
        f"no weights in {directory}: expected {WEIGHTS_FILE} or {PICKLED_FILE}, or the shards and"
        f" {INDEX_FILE} or {PICKLED_INDEX_FILE}"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is missing")
    names, there = sorted(set(map(str, weight_map.values()))), os.listdir(index.parent)
    for name in names:
        if name not in there or not (index.parent / name).is_file():
            raise ValueError(
                f"{index} names the shard {shown(name)}, which is not there: copy or download it"
                " again"
            )
    return [index.parent / name for name in names]
