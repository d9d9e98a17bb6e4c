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
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from numgpt.formats.huggingface import WEIGHTS_FILE
from numgpt.formats.safetensors import read_safetensors, write_safetensors
from numgpt.formats.source import FAMILIES, family_of
from numgpt.models import LanguageModel
from numgpt.models.parameters import Parameters
from numgpt.training.adamw import AdamW
from numgpt.training.config import OPTIONS, TrainConfig

CHECKPOINT_FILE = "checkpoint.safetensors"
_PREFIXES = ("weights.", "m.", "v.")


def save_checkpoint(
    directory: Path,
    config: TrainConfig,
    model: LanguageModel,
    optimizer: AdamW,
    rng: np.random.Generator,
    best_loss: float,
) -> None:
    """Replace directory/checkpoint.safetensors."""
    tensors = {"weights": model.parameters.flat, "m": optimizer.m, "v": optimizer.v}
    state = {
        "step": optimizer.steps,
        "best_loss": None if math.isinf(best_loss) else best_loss,
        "generator": rng.bit_generator.state,
        "options": dataclasses.asdict(config),
        "family": family_of(model).MODEL_TYPE,
        "model": dataclasses.asdict(model.config),
        "layout": model.parameters.layout,
    }
    write_safetensors(directory / CHECKPOINT_FILE, tensors, {"training": json.dumps(state)})


def read_state(directory: Path) -> dict[str, Any]:
    """What a checkpoint says of the run, without its arrays.

    Raises FileNotFoundError where there is none, ValueError naming the file where it is damaged.
    """
    path = Path(directory) / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    tensors, metadata = read_safetensors(path)
    try:
        state = json.loads(metadata["training"])
        state["options"] = TrainConfig(
            **{n: v for n, v in state["options"].items() if n in OPTIONS}
        )
        state["best_loss"] = math.inf if state["best_loss"] is None else state["best_loss"]
        state["arrays"] = {name: tensors[name].raw for name in ("weights", "m", "v")}
        family = FAMILIES[state.get("family", "gpt2")]
        state["model_class"] = family.MODEL
        state["model"] = family.MODEL.config_class(**state["model"])
        state["layout"] = {
            name: (offset, tuple(shape)) for name, (offset, shape) in state["layout"].items()
        }
        if not {"step", "generator"} <= state.keys():
            raise KeyError("step or generator")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a checkpoint of numgpt train ({error!r})") from None
    return state


def restore_model(state: dict[str, Any]) -> LanguageModel:
    """The model of a state read by `read_state`, in memory of its own."""
    return state["model_class"](
        state["model"], parameters=Parameters(np.array(state["arrays"]["weights"]), state["layout"])
    )


def restore_optimizer(state: dict[str, Any], optimizer: AdamW) -> None:
    """Put moments and step back in place, bit for bit."""
    optimizer.m[:] = state["arrays"]["m"]
    optimizer.v[:] = state["arrays"]["v"]
    optimizer.steps = state["step"]


def check_room(directory: Path, model: LanguageModel) -> None:
    """Raises OSError where the disk is too small for the checkpoints, the old beside the new."""
    size = model.parameters.flat.nbytes
    needed = 2 * (3 * size + size)  # weights and moments, and the best weights
    for path in (directory / CHECKPOINT_FILE, directory / WEIGHTS_FILE):
        needed -= path.stat().st_size if path.is_file() else 0
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"{directory} has {free / 1e6:.0f} MB free, the checkpoints of this model need"
            f" {needed / 1e6:.0f} MB: free some space or choose another --out"
        )
