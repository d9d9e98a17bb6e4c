"""A TOML file of options, in the names of the flags."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from numgpt.messages import shown

# What other programs call an option.
OTHERS_NAMES = {"learning_rate": "lr", "max_iters": "steps", "max_steps": "steps", "rank": "lora_r"}
OTHERS_NAMES |= {"r": "lora_r", "num_train_epochs": "epochs", "num_epochs": "epochs"}
OTHERS_NAMES |= {"per_device_train_batch_size": "batch_size", "warmup_steps": "warmup"}
OTHERS_NAMES |= {"gradient_accumulation_steps": "grad_accum", "output_dir": "out"}


def read_toml(path: str | Path, known: Collection[str]) -> dict[str, Any]:
    """The options in a TOML file.  Raises ValueError for what is not TOML, or no option, by
    name."""
    try:
        tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise ValueError("--config needs Python 3.11 or later, or: pip install tomli") from None
    try:
        with open(path, "rb") as file:
            options = tomllib.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # not TOML
        raise ValueError(f"{path} is not valid TOML: {error!s:.200}") from None
    options = {name.replace("-", "_"): value for name, value in options.items()}
    targets = options.get("lora_targets")
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        options["lora_targets"] = ",".join(targets)  # a list is TOML's way to write several
    for name, value in options.items():
        if isinstance(value, dict):
            raise ValueError(
                f"{path}: [{name:.80}] is a section; options stand in the file without any"
            )
        if name not in known:
            others = OTHERS_NAMES.get(name)
            near = [others] if others in known else difflib.get_close_matches(name, known, 1)
            names = ", ".join(map(repr, near or known))
            hint = f"did you mean {names}?" if near else f"there are {names}"
            raise ValueError(f"{path}: {shown(name)} is not an option; {hint}")
    return options
