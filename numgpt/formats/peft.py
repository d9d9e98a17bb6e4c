"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors <-> ours.

    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight      (r, I), and lora_B (O, r)

A and B have these shapes whatever the base's layout; for GPT-2's (in, out) matrices PEFT transposes
their product ("fan_in_fan_out").
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.files import finish_replacing, naming, replacing_together
from numgpt.formats.catalogue import CATALOGUE
from numgpt.formats.families import family_of
from numgpt.formats.family import Family
from numgpt.formats.huggingface import state_dict
from numgpt.formats.pytorch import read_pytorch
from numgpt.formats.safetensors import read_safetensors, write_safetensors
from numgpt.formats.source import is_finite
from numgpt.formats.tensors import StoredTensor, read_json
from numgpt.messages import shown
from numgpt.models import LanguageModel
from numgpt.models.lora import Adapter, LoRAConfig, adapter_shapes
from numgpt.models.parameters import Parameters

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PICKLED_ADAPTER_FILE = "adapter_model.bin"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, PICKLED_ADAPTER_FILE)
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.weight")
# What a config may say only if it says nothing by it: the field -> values that are none.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "use_qalora": (False, None),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
}


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (directory / ADAPTER_CONFIG_FILE).is_file()


def save_adapter(
    model: LanguageModel, directory: str | os.PathLike, name: str | None = None
) -> None:
    """Write an adapter of a model, the active one where none is named, as PEFT loads it."""
    name = model.active_adapter if name is None else name
    if name not in model.adapters:
        there = ", ".join(model.adapters) or "none"
        raise ValueError(f"there is no adapter {shown(name)} to save: there are {there}")
    if not os.fspath(directory):
        raise ValueError('directory="": name a directory')
    adapter, family = model.adapters[name], family_of(model)
    tensors = {}
    for ours, array in adapter.parameters.items():
        if not is_finite(array):
            raise ValueError(f"{ours} holds NaN or infinity: such weights are not saved")
        projection, _, part = ours.rpartition(".lora_")
        if part.startswith("B"):  # its rows are those of the projection's matrix
            array = family.stored_array(ours, array, model.config)
        tensors[f"{_PREFIX}{_module(family, projection)}.lora_{part}"] = array
    alpha = adapter.config.lora_alpha
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": adapter.config.r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": adapter.config.lora_dropout,
        "use_rslora": adapter.config.use_rslora,
        "target_modules": _targets(adapter, model, family),
        "fan_in_fan_out": any(family.is_transposed(f"{n}.weight") for n in adapter.names()),
        "bias": "none",
        "inference_mode": True,
    }
    with replacing_together(directory, remove=ADAPTER_FILES) as staged:
        write_safetensors(staged / ADAPTER_FILE, tensors)
        path = staged / ADAPTER_CONFIG_FILE
        with naming(path):
            path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _module(family: Family, projection: str) -> str:
    """Hugging Face's name for a projection."""
    return family.stored_name(f"{projection}.weight").removesuffix(".weight")


def _targets(adapter: Adapter, model: LanguageModel, family: Family) -> list[str]:
    """The last parts of the projections' names, where these are all of that name; else the whole
    names."""
    adapted = set(adapter.names())
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    if adapted == {n for n in model.projection_shapes() if n.rpartition(".")[2] in ends}:
        return ends
    return [_module(family, name) for name in adapter.names()]


def load_adapter(
    model: LanguageModel, directory: str | os.PathLike, name: str = "default"
) -> Adapter:
    """Read an adapter onto a model, and make it the active one.  It trains (in PEFT it does not,
    but for is_trainable=True).

    Raises FileNotFoundError or ValueError naming the file and what is wrong: what is no LoRA, an
    option that is not supported, a tensor that does not fit the model. Warns where the adapter says
    that it was made for another base.
    """
    directory = Path(directory)
    finish_replacing(directory)
    path = directory / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {directory}: expected {ADAPTER_CONFIG_FILE}")
    fields = read_json(path)
    try:
        config = _config(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    adapter = Adapter(config, _parameters(directory, model, config))
    config.target_modules = sorted({name.rpartition(".")[2] for name in adapter.names()})
    base = fields.get("base_model_name_or_path")
    if isinstance(base, str) and base and not _same(base, model.name_or_path):
        warnings.warn(
            f"{directory} was made for the base {shown(base)}, the model is"
            f" {shown(model.name_or_path)}: if they differ, its answers are worth nothing",
            stacklevel=2,
        )
    return model.attach_adapter(adapter, name)


def base_of(directory: Path) -> str:
    """The name of the model that an adapter is for, as it is known here.  Raises ValueError where
    the adapter does not say."""
    base = read_json(directory / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{directory} is an adapter that does not say of which model: name the model, and"
            f" --adapter {directory}"
        )
    return _local_name(base)


def _named_base(directory: Path) -> str:
    try:
        return shown(base_of(directory))
    except ValueError:  # it does not say
        return "another base"


def hub_name(name: str) -> str:
    """The hub's id of a model, where the catalogue knows one; a path from anywhere."""
    if os.path.exists(name):
        return os.path.abspath(name)
    return CATALOGUE[name].hub_id if name in CATALOGUE else name


def _local_name(name: str) -> str:
    """The catalogue's name for a hub id, where it has one."""
    known = {model.hub_id: local for local, model in CATALOGUE.items()}
    return name if os.path.exists(name) else known.get(name, name)


def _same(base: str, name: str | None) -> bool:
    """Whether two names may be the same model's; nothing is known of a model without one."""
    return name is None or hub_name(base) == hub_name(name)


def _config(fields: Mapping[str, Any]) -> LoRAConfig:
    """Raises ValueError naming a field whose value is not supported."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type={shown(kind)} is not supported, only LORA")
    for name, nothing in _NOTHING.items():
        if fields.get(name) not in nothing:
            what = "DoRA" if name == "use_dora" else f"{name}={shown(fields[name])}"
            raise ValueError(f"{what} is not supported: only plain LoRA on projections is")
    known = ("r", "lora_alpha", "lora_dropout", "use_rslora")
    config = LoRAConfig(**{name: fields[name] for name in known if name in fields})
    config.validate()
    return config


def _parameters(directory: Path, model: LanguageModel, config: LoRAConfig) -> Parameters:
    """All A and B, checked and in the model's layout."""
    family, shapes = family_of(model), model.projection_shapes()
    found: dict[str, StoredTensor] = {}
    for stored, tensor in _read(directory):
        what = f"{tensor.path}: tensor {shown(stored)}"
        match = _TENSOR.fullmatch(stored)
        if match is None:
            dora = " (DoRA)" if "lora_magnitude_vector" in stored else ""
            raise ValueError(f"{what} is no A or B of a LoRA{dora}: it is not supported")
        weight = family.our_name(f"{match[1]}.weight", model.config) or ""
        projection = weight.removesuffix(".weight")
        if projection not in shapes:
            raise ValueError(
                f"{what} is for no projection of {shown(model.name_or_path)}: the adapter is for"
                f" {_named_base(directory)}: name that as the model"
            )
        found[f"{projection}.lora_{match[2]}.weight"] = tensor
    adapted = [name for name in shapes if f"{name}.lora_A.weight" in found]
    expected = adapter_shapes({name: shapes[name] for name in adapted}, config.r)
    if missing := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"{directory}: the adapter lacks one of A and B: {missing[0]} is alone")
    if not found:
        raise ValueError(f"{directory}: the adapter holds no tensors")
    arrays = {}
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.path}: tensor {shown(tensor.name)} has shape {list(tensor.shape)}, the"
                f" model {shown(model.name_or_path)} and r={config.r} ask for {list(shape)}: the"
                f" adapter is for {_named_base(directory)}: name that as the model"
            )
        if not tensor.is_float:
            raise ValueError(f"{tensor.path}: tensor {shown(tensor.name)} is {tensor.dtype}")
        array = np.empty(shape, np.float32)
        tensor.read_into(array)
        if not is_finite(array):
            raise ValueError(f"{tensor.path}: tensor {shown(tensor.name)} holds NaN or infinity")
        if ".lora_B." in name:
            array = family.own_array(name, array, model.config)
        arrays[name] = array
    parameters = Parameters.empty(Parameters.separate(arrays).layout, model.parameters.dtype)
    for name, array in parameters.items():
        array[...] = arrays[name]
    return parameters


def _read(directory: Path) -> list[tuple[str, StoredTensor]]:
    if (path := directory / ADAPTER_FILE).is_file():
        return list(read_safetensors(path)[0].items())
    if (path := directory / PICKLED_ADAPTER_FILE).is_file():
        return state_dict(path, read_pytorch(path))
    raise FileNotFoundError(f"no adapter's weights in {directory}: expected {ADAPTER_FILE}")
