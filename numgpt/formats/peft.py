"""Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors <-> ours.

    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight      (r, I), and lora_B (O, r)

A and B have these shapes whatever the base's layout; for GPT-2's (in, out) matrices PEFT transposes
their product ("fan_in_fan_out").
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from numgpt.files import finish_replacing, replacing_together
from numgpt.formats.catalogue import CATALOGUE
from numgpt.formats.families import family_of
from numgpt.formats.family import Family
from numgpt.formats.huggingface import state_dict, write_json
from numgpt.formats.pytorch import read_pytorch
from numgpt.formats.safetensors import read_safetensors, write_safetensors
from numgpt.formats.source import is_finite, without_wrappers
from numgpt.formats.tensors import StoredTensor
from numgpt.messages import quoted, shown
from numgpt.models import LanguageModel
from numgpt.models.lora import Adapter, LoRAConfig, adapter_shapes, fitting
from numgpt.models.modules import SCORE
from numgpt.models.parameters import Parameters
from numgpt.options import OptionError
from numgpt.reading import about, read_json_object

T = TypeVar("T")
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PICKLED_ADAPTER_FILE = "adapter_model.bin"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, PICKLED_ADAPTER_FILE)
_PREFIX = "base_model.model."
_SAVED_MODULES = ["classifier", "score"]  # as PEFT names what may be a head
FINGERPRINTED = 1 << 10  # values of each parameter
_NEEDED = {"r": 8, "lora_alpha": 8}  # are not None; PEFT's defaults where they are left out
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.weight")
# What a config says that is LoRAConfig's, …
_USED = tuple(field.name for field in dataclasses.fields(LoRAConfig))
# … what is read besides, or changes nothing: of what kind it is and who made it; the layout, which
# the base decides; settings of how A and B began, or of how they are computed on many machines.
_HARMLESS = frozenset(
    "peft_type base_model_name_or_path init_lora_weights task_type auto_mapping"  # noqa: SIM905
    " peft_version revision inference_mode fan_in_fan_out megatron_config megatron_core"
    " loftq_config eva_config corda_config lora_ga_config velora_config runtime_config"
    " qalora_group_size ensure_weight_tying modules_to_save".split()
)
# … and what it may say only if it says nothing by it: the field -> values that are none.
_NOTHING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters"), (None, [])),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config"), (None, {})),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, [], {}),
    "bias": ("none", None),
}
# How A and B began, where the base stayed as it was. Other beginnings (pissa, olora, corda, loftq,
# lora_ga) took their product out of the base, and mica reads A and B in its own way.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_FINGERPRINT = "numgpt.base"  # in the tensors' metadata: of the base that was tuned


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (directory / ADAPTER_CONFIG_FILE).is_file()


def has_score_head(directory: Path) -> bool:
    """Whether an adapter's file has a score head beside A and B."""
    return any(without_wrappers(n).removeprefix(_PREFIX) == SCORE for n, _ in _read(directory)[0])


def save_adapter(
    model: LanguageModel, directory: str | os.PathLike, name: str | None = None
) -> None:
    """Write an adapter of a model, the active one where none is named, as PEFT loads it."""
    name = model.active_adapter if name is None else name
    if name is None or name not in model.adapters:
        there = ", ".join(model.adapters) or "none"
        raise ValueError(f"there is no adapter {shown(name)} to save: there are {there}")
    adapter, family = model.adapters[name], family_of(model)
    modules, tensors = {name: _module(family, name) for name in adapter.names()}, {}
    head = model.head_parameters if model.head_of == name else None
    for ours, array in {**adapter.parameters, **(head or {})}.items():
        if not is_finite(array):
            raise ValueError(f"{ours} holds NaN or infinity: such weights are not saved")
        projection, lora, part = ours.rpartition(".lora_")
        tensors[_PREFIX + (f"{modules[projection]}{lora}{part}" if lora else ours)] = array
    alpha, targets = adapter.config.lora_alpha, _local_targets(adapter, model)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "modules_to_save": None if head is None else _SAVED_MODULES,
        "base_model_name_or_path": model.name_or_path,
        "r": adapter.config.r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "rank_pattern": _exact(adapter.config.rank_pattern, modules),
        "alpha_pattern": _exact(adapter.config.alpha_pattern, modules),
        "lora_dropout": adapter.config.lora_dropout,
        "use_rslora": adapter.config.use_rslora,
        "target_modules": [modules.get(name, name) for name in targets],
        "fan_in_fan_out": any(family.is_transposed(f"{n}.weight") for n in adapter.names()),
        "bias": "none",
        "inference_mode": True,
    }
    with replacing_together(directory, remove=ADAPTER_FILES) as staged:
        told = {_FINGERPRINT: fingerprint(model)} if not model.in_fewer_bits else {}
        write_safetensors(staged / ADAPTER_FILE, tensors, told)
        write_json(staged / ADAPTER_CONFIG_FILE, fields)


def _exact(patterns: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Patterns of some names, as the other names that they fit: name -> other name."""
    keys = {key: key for key in patterns}
    fit = {other: fitting(keys, name, "") for name, other in names.items()}
    return {re.escape(other): patterns[key] for other, key in fit.items() if key}


def _module(family: Family, projection: str) -> str:
    """Hugging Face's name for a projection."""
    return family.stored_name(f"{projection}.weight").removesuffix(".weight")


def _local_targets(adapter: Adapter, model: LanguageModel) -> list[str]:
    """The last parts of the projections' names, where these are all of that name; else the whole
    names."""
    adapted = set(adapter.names())
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    if adapted == {n for n in model.projection_shapes() if n.rpartition(".")[2] in ends}:
        return ends
    return adapter.names()


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
    fields = read_json_object(path)
    with about(path):
        config, targeted = _config(fields, model)
    if unknown := sorted(fields.keys() - _HARMLESS - {*_USED} - _NOTHING.keys()):
        warnings.warn(f"{path}: {', '.join(unknown)}: not known here, left out", stacklevel=2)
    parameters, head, metadata = _parameters(directory, model, config, targeted)
    adapter = Adapter(config, parameters)
    config.target_modules = _local_targets(adapter, model)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    base = fields.get("base_model_name_or_path")
    tuned = None if model.in_fewer_bits else metadata.get(_FINGERPRINT)
    if tuned is None or tuned != fingerprint(model):
        _warn_of_base(directory, model, base, tuned is not None)
    model.attach_adapter(adapter, name)
    if head is not None:
        model.add_score_head(head)
    return adapter


def fingerprint(model: LanguageModel) -> str:
    """Changes with a model's own weights, whatever is merged into them: of some values of each, to
    be quick."""
    digest = hashlib.sha256()
    for name, array in sorted(model.own_parameters.items()):
        digest.update(f"{name} {array.shape}".encode())
        values = np.asarray(array).reshape(-1)
        values = values[:: max(1, len(values) // FINGERPRINTED)]
        digest.update(values.astype(np.float32, copy=False).tobytes())
    return digest.hexdigest()


def _warn_of_base(directory: Path, model: LanguageModel, base: Any, is_other: bool) -> None:
    """Tell that an adapter may be for another model, by its name or by its weights."""
    told, name = isinstance(base, str) and base, model.name_or_path
    if told and name is not None and hub_name(base) != hub_name(name):
        what = f"the model is {shown(name)}: if they differ,"
    elif is_other:
        what = "whose weights were others: if they differed by more than rounding,"
    else:
        return
    warnings.warn(
        f"{directory} was made for the base {shown(base) if told else 'of its run'}, {what}"
        " its answers are worth nothing",
        stacklevel=3,
    )


def base_of(directory: Path) -> str:
    """The name of the model that an adapter is for, the catalogue's where it has one.  Raises
    ValueError where the adapter does not say."""
    base = read_json_object(directory / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        which = "{0} is an adapter that does not say of which model: name the model, and"
        raise OptionError(which + " {adapter:name} {1}", directory, quoted(directory))
    known = {model.hub_id: local for local, model in CATALOGUE.items()}
    return base if os.path.exists(base) else known.get(base, base)


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


def _config(fields: Mapping[str, Any], model: LanguageModel) -> tuple[LoRAConfig, list[str]]:
    """The options, and the projections that they are for.  Raises ValueError naming a field whose
    value is not supported."""
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type={shown(kind)} is not supported, only LORA")
    if not {*(fields.get("modules_to_save") or ())} <= {*_SAVED_MODULES}:
        what = f"modules_to_save={shown(fields['modules_to_save'])}"
        raise ValueError(f"{what} is not supported: only plain LoRA, and a score head, are")
    for name, nothing in _NOTHING.items():
        if fields.get(name) not in nothing:
            what = "DoRA" if name == "use_dora" else f"{name}={shown(fields[name])}"
            raise ValueError(f"{what} is not supported: only plain LoRA on projections is")
    init = fields.get("init_lora_weights", True)
    lowered = init.lower() if isinstance(init, str) else init
    if lowered not in _BEGINNINGS:
        raise ValueError(
            f"init_lora_weights={shown(init)} is not supported: the base was changed when this"
            " adapter was made, or is to be; save it again with PEFT's"
            " save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    fields = _NEEDED | dict(fields)
    given = {n: fields[n] for n in _USED if fields.get(n) is not None or n in _NEEDED}
    config = LoRAConfig(**given)
    config.validate()
    family = family_of(model)
    names = {name: _module(family, name) for name in model.projection_shapes()}
    found = config.chosen(names, model.default_lora_targets, names.__getitem__, strict=False)
    ours = {module: name for name, module in names.items()}
    config.rank_pattern = _exact(config.rank_pattern, ours)
    config.alpha_pattern = _exact(config.alpha_pattern, ours)
    return config, found


def _parameters(
    directory: Path, model: LanguageModel, config: LoRAConfig, targeted: list[str]
) -> tuple[Parameters, np.ndarray | None, dict[str, str]]:
    """All A and B, checked and in the model's layout; a score head, if there is one; and the file's
    metadata."""
    family, shapes = family_of(model), model.projection_shapes()
    found: dict[str, StoredTensor] = {}
    stored_tensors, metadata = _read(directory)
    head = None
    for stored, tensor in stored_tensors:
        what = f"{tensor.path}: tensor {shown(stored)}"
        if without_wrappers(stored).removeprefix(_PREFIX) == SCORE:
            if tensor.shape != (1, model.config.width):
                raise ValueError(
                    f"{what} has shape {list(tensor.shape)}: only a head of one output is read,"
                    f" [1, {model.config.width}]"
                )
            head = tensor.finite()
            continue
        match = _TENSOR.fullmatch(without_wrappers(stored))
        if match is None:
            kinds = {"lora_magnitude_vector": " (DoRA)", "lora_embedding": " (of an embedding)"}
            kind = next((kinds[sign] for sign in kinds if sign in stored), "")
            raise ValueError(f"{what} is no A or B of a LoRA{kind}: it is not supported")
        weight = family.our_name(f"{match[1]}.weight", model.config) or ""
        projection = weight.removesuffix(".weight")
        if projection not in shapes:
            if (end := match[1].rpartition(".")[2]) in ("lm_head", "wte", "embed_tokens"):
                raise ValueError(f"{what} is for no projection: LoRA on {end} is not supported")
            raise ValueError(
                f"{what} is for no projection of {_called(model)}: the adapter is for"
                f" {_named_base(directory)}: name that as the model"
            )
        found[f"{projection}.lora_{match[2]}.weight"] = tensor
    adapted = [name for name in shapes if f"{name}.lora_A.weight" in found]
    expected = adapter_shapes({name: shapes[name] for name in adapted}, config)
    if missing := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"{directory}: the adapter lacks one of A and B: {missing[0]} is alone")
    if not found:
        raise ValueError(f"{directory}: the adapter holds no tensors")
    if not targeted:
        raise ValueError(
            f"{directory}: its target_modules, with what they leave out, are none of"
            f" {_called(model)}'s projections: nothing of it would be used"
        )
    _compare(directory, adapted, targeted)
    adapted = [name for name in adapted if name in targeted]
    expected = adapter_shapes({name: shapes[name] for name in adapted}, config)
    arrays = {}
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape:
            rank = config.rank_of(name.rpartition(".lora_")[0])
            raise ValueError(
                f"{tensor} has shape {list(tensor.shape)}, {_called(model)} and r={rank} ask for"
                f" {list(shape)}: the adapter is for {_named_base(directory)}: name that as the"
                " model"
            )
        if not tensor.is_float:
            raise ValueError(f"{tensor} is {tensor.dtype}")
        arrays[name] = tensor.finite()
    parameters = Parameters.empty(Parameters.separate(arrays).layout, model.parameters.dtype)
    for name, array in parameters.items():
        array[...] = arrays[name]
    return parameters, head, metadata


def _compare(directory: Path, adapted: list[str], targeted: list[str]) -> None:
    """Warn where the tensors are not those of the projections that the config names."""
    if missing := [name for name in targeted if name not in adapted]:
        warnings.warn(
            f"{directory} has no tensors for {len(missing)} of the {len(targeted)} projections that"
            f" its target_modules name, such as {missing[0]}: they stay as the base has them",
            stacklevel=4,
        )
    if surplus := [name for name in adapted if name not in targeted]:
        warnings.warn(
            f"{directory} has tensors for {len(surplus)} projections that its target_modules do not"
            f" name, such as {surplus[0]}: they are left out",
            stacklevel=4,
        )


def _called(model: LanguageModel) -> str:
    """What a model is called in errors."""
    return "the model" if model.name_or_path is None else f"the model {shown(model.name_or_path)}"


def _read(directory: Path) -> tuple[list[tuple[str, StoredTensor]], dict[str, str]]:
    """The tensors by name, and what else the file says."""
    if (path := directory / ADAPTER_FILE).is_file():
        tensors, metadata = read_safetensors(path)
        return list(tensors.items()), metadata
    if (path := directory / PICKLED_ADAPTER_FILE).is_file():
        return state_dict(path, read_pytorch(path)), {}
    raise FileNotFoundError(f"no adapter's weights in {directory}: expected {ADAPTER_FILE}")
