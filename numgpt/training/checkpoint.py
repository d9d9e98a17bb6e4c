"""The whole state of a training run in one file.

It holds weights, AdamW's moments, step, generator, best loss and options.

One file means one rename, and the rename is what makes a kill at any instant harmless: either the
old checkpoint is there or the new one, each complete. The batches are drawn by the saved generator,
so its state is the data position.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from numgpt import formats
from numgpt.data.corpus import TokensFile, tokens_file_from
from numgpt.data.finding import CHECKPOINT_FILE, OTHER_WEIGHTS
from numgpt.files import finish_replacing
from numgpt.formats.families import FAMILIES
from numgpt.formats.huggingface import WEIGHTS_FILE
from numgpt.formats.peft import ADAPTER_FILE, fingerprint
from numgpt.formats.safetensors import read_safetensors, write_safetensors
from numgpt.formats.tensors import StoredTensor
from numgpt.messages import one_line, shown
from numgpt.models import LanguageModel
from numgpt.models.config import Config
from numgpt.models.lora import Adapter, LoRAConfig, adapter_shapes
from numgpt.models.modules import SCORE
from numgpt.models.parameters import Layout, Parameters
from numgpt.options import OptionError, number, require, whole
from numgpt.runtime import DTYPES, multiplies_rounded, physical_memory
from numgpt.training.adamw import AdamW
from numgpt.training.config import RunConfig, TrainConfig, options_of
from numgpt.training.rollout_config import GRPOConfig, PPOConfig
from numgpt.training.step import Sums
from numgpt.training.tune_config import DPOConfig, KTOConfig, RewardConfig, TuneConfig, TuningConfig

# The options of every kind of run, by the name that its checkpoint has for it.
CONFIGS: dict[str, type[RunConfig]] = {
    one.kind: one
    for one in (TrainConfig, TuneConfig, DPOConfig, KTOConfig, RewardConfig, GRPOConfig, PPOConfig)
}
COUNTS = ("best_step", "unreported_steps", "batches", "tokens_seen")  # of the state
HEAD = "head"  # where a score head trains too
MADE = "made."  # begins the name of an array that a task has made
SEEN = {"tokens": "targets"}  # what a sum was called in version 0.1.0
# What is raised on the way through a state that is not as it should be.
DAMAGE = ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError


class BaseModelError(ValueError):
    """The model that a run tunes is not what it was."""


@dataclasses.dataclass
class RunState:
    """What a run has come to."""

    config: RunConfig
    model: LanguageModel
    optimizer: AdamW
    rng: np.random.Generator
    tokens: TokensFile
    best_loss: float = math.inf  # the lowest validation loss so far
    best_step: int = 0  # whose weights had it
    unreported: Sums = dataclasses.field(default_factory=dict)  # of the steps since the last report
    unreported_steps: int = 0
    batches: int = 0  # that were drawn since the beginning
    tokens_seen: int = 0
    # What a task has made that later steps need, by name: of float32 or whole numbers.
    made: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def new(cls, config: RunConfig, model: LanguageModel, tokens: TokensFile) -> RunState:
        """The state before the first step."""
        state = cls(config, model, AdamW(model), np.random.default_rng(config.seed), tokens)
        state.apply_options()
        return state

    def apply_options(self) -> None:
        """Bring what the options may change in a run that goes on into model and optimizer."""
        self.model.config.set_dropout(self.config.dropout)
        if isinstance(self.config, TuningConfig) and self.model.adapter is not None:
            self.model.adapter.config.lora_dropout = self.config.lora_dropout
        self.optimizer.betas = (self.optimizer.betas[0], self.config.beta2)
        self.optimizer.weight_decay = self.config.weight_decay


def save_checkpoint(directory: Path, state: RunState) -> None:
    """Replace directory/checkpoint.safetensors.  Raises ValueError for a model of which parts are
    frozen, or that has no common buffer: it would not be restored."""
    model, optimizer = state.model, state.optimizer
    parameters, head = tuned_parameters(model), model.head_parameters
    trained = parameters.layout.keys() | (() if head is None else head.layout.keys())
    if parameters.flat is None or model.trained.keys() != trained:
        raise ValueError("a checkpoint holds a model that trains as a whole: unfreeze() it first")
    tensors = {"weights": parameters.flat, "m": optimizer.m, "v": optimizer.v}
    if head is not None:
        tensors[HEAD] = head[SCORE]
    tensors |= {MADE + name: array for name, array in state.made.items()}
    saved = {name: getattr(state, name) for name in COUNTS} | {
        "step": optimizer.steps,
        "best_loss": None if math.isinf(state.best_loss) else state.best_loss,
        "unreported": state.unreported,
        "generator": state.rng.bit_generator.state,
        "kind": state.config.kind,
        "options": dataclasses.asdict(state.config),
        "tokens": dataclasses.asdict(state.tokens),
        "model": dataclasses.asdict(model.config),
        "layout": parameters.layout,
    }
    if model.adapter is not None:
        saved["adapter"] = dataclasses.asdict(model.adapter.config)
        saved["base"] = fingerprint(model)
    write_safetensors(directory / CHECKPOINT_FILE, tensors, {"training": json.dumps(saved)})


def load_checkpoint(directory: str | Path) -> RunState:
    """The state that a run was saved in, in memory of its own.

    Raises FileNotFoundError where there is none, ValueError naming the file where it is damaged.
    """
    directory = Path(directory)
    finish_replacing(directory)
    path = directory / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    tensors, metadata = read_safetensors(path)
    try:
        return _restore(json.loads(metadata["training"]), tensors)
    except BaseModelError as error:
        raise BaseModelError(f"{directory}: {error}") from None
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        reason = f"{error} is missing" if isinstance(error, KeyError) else reason
        reason = one_line(error) if isinstance(error, ValueError) else reason
        raise ValueError(
            f"{path} is not a checkpoint that numgpt can go on from ({reason:.300}): put a copy"
            f" of it back, or start a new run from the weights in {directory}"
        ) from None


def tuned_on_conversations(directory: str | os.PathLike) -> bool:
    """Whether a directory is that of a run, or of its other weights, that learns the answers of
    conversations."""
    place = Path(directory)
    place = place.parent if place.name in OTHER_WEIGHTS else place
    if not (place / CHECKPOINT_FILE).is_file():
        return False
    try:
        _, metadata = read_safetensors(place / CHECKPOINT_FILE)
        return tokens_file_from(json.loads(metadata["training"])["tokens"]).conversations
    except DAMAGE:  # which is for --resume to say
        return False


def _restore(saved: dict[str, Any], tensors: Mapping[str, StoredTensor]) -> RunState:
    """Raises an error of DAMAGE for what no checkpoint says."""
    if saved["kind"] not in CONFIGS:
        raise ValueError(f"kind={shown(saved['kind'])} is not one of {', '.join(CONFIGS)}")
    config_class = CONFIGS[saved["kind"]]
    known = options_of(config_class)
    config = config_class(**{n: v for n, v in saved["options"].items() if n in known})
    config.validate()
    flat, m, v = (_vector(name, tensors) for name in ("weights", "m", "v"))
    head = tensors.get(HEAD)
    if not len(flat) + (0 if head is None else head.raw.size) == len(m) == len(v):
        raise ValueError("weights and moments have different sizes")
    family = FAMILIES[saved["model"]["model_type"]]
    model_config = family.model.config_class(**saved["model"])
    model_config.validate()
    layout = {name: (offset, tuple(shape)) for name, (offset, shape) in saved["layout"].items()}
    if config.longest > model_config.context_length:
        raise ValueError(f"sequences of {config.longest} tokens are not within the model's context")
    if "adapter" in saved:
        model = _adapted(config, saved, np.array(flat), layout)
    else:
        if model_config.layers > len(layout):
            raise ValueError(f"{model_config.layers_field} is more than the layout has names")
        _check_layout(layout, family.model.shapes(model_config), len(flat))
        model = family.model(model_config, parameters=Parameters(np.array(flat), layout))
    if head is not None:
        model.add_score_head(head.finite())
    state = RunState.new(config, model, tokens_file_from(saved["tokens"]))
    state.optimizer.m[:], state.optimizer.v[:] = m, v
    state.optimizer.steps = saved["step"]
    state.rng.bit_generator.state = saved["generator"]
    if isinstance(saved["unreported"], list):  # as version 0.1.0 had it
        loss, saved["unreported_steps"] = saved["unreported"]
        seen = {SEEN.get(name, name): value for name, value in saved["statistics"].items()}
        saved["unreported"] = {"loss": loss} | seen
    for name in COUNTS:
        setattr(state, name, saved[name])
    if saved["best_loss"] is not None:
        state.best_loss = saved["best_loss"]
        require(state, number(), "best_loss")
    require(state.optimizer, whole(0), "steps")
    require(state, whole(0), *COUNTS)
    state.unreported = saved["unreported"]
    if not all(map(number().fits, state.unreported.values())):
        raise ValueError(f"unreported={shown(state.unreported)}")
    made = {n.removeprefix(MADE): tensor for n, tensor in tensors.items() if n.startswith(MADE)}
    state.made = {name: np.array(tensor.raw).reshape(tensor.shape) for name, tensor in made.items()}
    return state


def _adapted(
    config: RunConfig, saved: dict[str, Any], flat: np.ndarray, layout: Layout
) -> LanguageModel:
    """The base that was tuned, with its adapter."""
    if not isinstance(config, TuningConfig):
        raise ValueError("an adapter, in a run that tunes none")
    model = load_base(config, saved["base"])
    lora = LoRAConfig(**saved["adapter"])
    lora.validate()
    shapes = model.projection_shapes()
    chosen = lora.chosen(shapes, ())
    _check_layout(layout, adapter_shapes({n: shapes[n] for n in chosen}, lora), len(flat))
    model.attach_adapter(Adapter(lora, Parameters(flat, layout)))
    return model


def load_base(config: TuningConfig, base: str) -> LanguageModel:
    """The model that a run began with, of this fingerprint.  Raises BaseModelError where it is not
    there, or is another."""
    try:
        model = formats.load_model(config.model, dtype=config.stored)
    except OSError as error:
        raise BaseModelError(f"the run's base is missing, put it back ({error})") from None
    if fingerprint(model) != base:
        other = f"the run's base {shown(config.model)} has other weights than the run began with"
        raise BaseModelError(f"{other}: put those back")
    return model


def _vector(name: str, tensors: Mapping[str, StoredTensor]) -> np.ndarray:
    tensor = tensors[name]
    if tensor.dtype not in ("F32", "F64") or len(tensor.shape) != 1:
        raise ValueError(f"{name} is {tensor.dtype} of shape {shown(tensor.shape)}")
    return tensor.raw


def _check_layout(layout: Layout, shapes: dict[str, tuple[int, ...]], size: int) -> None:
    """The places of all parameters, side by side on a buffer of this size."""
    if {name: shape for name, (_, shape) in layout.items()} != shapes:
        raise ValueError("the layout is not that of the model")
    end = 0
    for offset, shape in sorted(layout.values()):
        if offset != end:
            raise ValueError("the layout has gaps or overlaps")
        end += math.prod(shape)
    if end != size:
        raise ValueError(f"the layout has {end} numbers, the file {size}")


def checkpoint_bytes(model: LanguageModel) -> int:
    """The size of a checkpoint: what trains, and two moments."""
    return 3 * tuned_parameters(model).nbytes


def tuned_parameters(model: LanguageModel) -> Parameters:
    """What a run changes: the active adapter, or else the model's own weights."""
    return model.parameters if model.adapter is None else model.adapter.parameters


def save_tuned(model: LanguageModel, directory: Path, with_head: bool = True) -> None:
    """Write the adapter in PEFT's layout, or the whole model in Hugging Face's."""
    with nullcontext() if with_head else model.without_score_head():
        if model.adapter is None:
            model.save_pretrained(directory)
        else:
            model.save_adapter(directory)


def check_memory(config: RunConfig, model_config: Config, trained: int | None = None) -> None:
    """Raises OptionError where a run can't fit into memory: weights, and they rounded, where they
    are; of those that train (all, where no number is given) gradients and two moments; and of a
    batch the residual stream of every block, which is the least that it needs."""
    width, layers = model_config.width, model_config.layers
    vectors = 12 * layers * width + model_config.vocab_size + model_config.context_length
    weights = vectors * width  # about
    trained = weights if trained is None else trained
    batch = config.batch_size * config.sequences * config.longest * layers * width
    rounded = (2 if multiplies_rounded() else 4) * weights * (config.products != DTYPES[0])
    if (needed := 4 * (weights + 3 * trained + batch) + rounded) > physical_memory():
        longest = config.length_option
        raise OptionError(
            f"{{batch_size}} of up to {{{longest}}} tokens, in a model of {{0:,}} parameters, need"
            " {1:,.0f} GB to train, and this machine has {2:,.0f} GB: choose a smaller model or"
            " batch, and perhaps more {grad_accum:name}",
            weights,
            needed / 1e9,
            physical_memory() / 1e9,
            batch_size=config.batch_size,
            **{longest: config.longest},
        )


def check_disk(directory: Path, model: LanguageModel) -> None:
    """Raises OSError where the disk is too small for the checkpoints, the old beside the new."""
    weights = tuned_parameters(model).nbytes  # those that are kept, the best and the last
    needed = 2 * (checkpoint_bytes(model) + 2 * weights)
    for path in (directory / n for n in (CHECKPOINT_FILE, WEIGHTS_FILE, ADAPTER_FILE)):
        needed -= path.stat().st_size if path.is_file() else 0
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"{directory} has {free / 1e6:,.3f} MB free, the checkpoints of this model need"
            f" {needed / 1e6:,.3f} MB: free some space or choose another directory"
        )
