"""All options of a training run: flags, TOML files and checkpoints share these names."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numgpt.formats.families import FAMILIES
from numgpt.messages import shown

# Options whose default depends on where the weights come from: at random, or from another model.
FROM_NOTHING = {"lr": 1e-3, "steps": 2000, "warmup": 100, "batch_size": 12, "block_size": 64}
FROM_NOTHING |= {"log_every": 100, "eval_every": 250, "sample_every": 500, "save_every": 250}
FROM_A_MODEL = {"lr": 5e-5, "steps": 200, "warmup": 20, "batch_size": 4}
FROM_A_MODEL |= {"log_every": 10, "eval_every": 50, "sample_every": 100, "save_every": 50}
MOST_CONTEXT = 512  # tokens; of a model's own context, when it is tuned without --block-size


def _option(default: Any, help: str, group: str, kind: type | None = None) -> Any:
    """kind is the type of an option without a default."""
    metadata = {"help": help, "group": group, "kind": kind or type(default)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class TrainConfig:
    """The options of a run. What is None at first gets its default from FROM_NOTHING, or from
    FROM_A_MODEL where init_from is given; block_size then is the model's context, up to
    MOST_CONTEXT."""

    data: str | list[str] | None = _option(
        None, "text: files, directories or globs; none: the Python language reference", "data", str
    )
    val_fraction: float = _option(
        0.1, "fraction of the tokens, at the end, held out for validation", "data"
    )
    tokenizer: str = _option(
        "bpe", "bpe (learnt from the text), char, or a directory that holds one", "data"
    )
    vocab_size: int = _option(1024, "size of the vocabulary that --tokenizer bpe learns", "data")

    arch: str = _option("gpt2", f"family of the model: {' or '.join(FAMILIES)}", "model")
    n_layer: int = _option(4, "blocks", "model")
    n_head: int = _option(4, "attention heads a block", "model")
    n_kv_head: int = _option(
        0, "KV heads that they share, where the family can; 0: one for each", "model"
    )
    n_embd: int = _option(128, "width of the residual stream", "model")
    block_size: int | None = _option(None, "context length in tokens", "model", int)
    dropout: float = _option(
        0.0, "fraction of activations dropped in training; of attention only in a Llama", "model"
    )
    init_from: str | None = _option(
        None, "model to fine-tune: a directory or a name; brings tokenizer and sizes", "model", str
    )

    steps: int = _option(None, "optimizer steps", "schedule", int)
    batch_size: int = _option(None, "sequences in a batch", "schedule", int)
    grad_accum: int = _option(1, "batches whose gradients make one step", "schedule")
    lr: float = _option(None, "highest learning rate", "schedule", float)
    min_lr: float | None = _option(
        None, "learning rate at the end of the cosine (default: a tenth of --lr)", "schedule", float
    )
    warmup: int = _option(None, "steps of linear warm-up", "schedule", int)
    weight_decay: float = _option(0.1, "decoupled decay of matrices", "schedule")
    beta2: float = _option(0.99, "AdamW's decay of the second moment", "schedule")
    grad_clip: float = _option(
        1.0, "largest global norm of the gradients; 0: no clipping", "schedule"
    )
    seed: int = _option(1337, "seed of weights, batches and dropout", "schedule")

    log_every: int = _option(None, "steps between reports", "rhythm", int)
    eval_every: int = _option(None, "steps between validations", "rhythm", int)
    eval_batches: int = _option(20, "batches of a validation, always the same", "rhythm")
    sample_every: int = _option(None, "steps between samples; 0: none", "rhythm", int)
    save_every: int = _option(None, "steps between checkpoints", "rhythm", int)

    def __post_init__(self) -> None:
        defaults = FROM_NOTHING if self.init_from is None else FROM_A_MODEL
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def context(self) -> int:
        """block_size, once the model has decided what None stands for."""
        assert self.block_size is not None
        return self.block_size

    @property
    def lowest_lr(self) -> float:
        """The learning rate at the end of the cosine."""
        return self.lr / 10 if self.min_lr is None else self.min_lr

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        for name in sorted(_AT_LEAST_ONE):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={shown(value)}: expected 1 or more")
        for name in sorted(_AT_LEAST_ZERO):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name}={shown(value)}: expected 0 or more")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected a number above 0")
        if self.lowest_lr > self.lr:
            raise ValueError(
                f"min_lr={self.min_lr} is above lr={self.lr}: lower it, 0.1 · lr is usual"
            )
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more and below 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: expected a number between 0 and 1")
        self._validate_sizes()

    def _validate_sizes(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.arch not in FAMILIES:
            raise ValueError(f"arch={shown(self.arch)}: expected {' or '.join(FAMILIES)}")
        sizes = (self.n_layer, self.n_head, self.n_kv_head, self.n_embd)
        try:
            config_class = FAMILIES[self.arch].model.config_class
            config_class.of_sizes(self.arch, 1, 1, *sizes).validate()
        except ValueError as error:
            raise ValueError(
                f"arch={self.arch}, n_head={self.n_head}, n_kv_head={self.n_kv_head},"
                f" n_embd={self.n_embd}: {error}"
            ) from None


_AT_LEAST_ONE = {"vocab_size", "n_layer", "n_head", "n_embd", "block_size", "steps", "batch_size"}
_AT_LEAST_ONE |= {"grad_accum", "log_every", "eval_every", "eval_batches", "save_every"}
_AT_LEAST_ZERO = {"warmup", "weight_decay", "grad_clip", "seed", "sample_every", "min_lr"}
_AT_LEAST_ZERO |= {"n_kv_head"}
_MAY_BE_NONE = ("data", "init_from", "min_lr", "block_size")
LARGEST_FILE = 1 << 20  # bytes of options
LARGEST = 1 << 53  # whole numbers above it are no option's
OPTIONS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def _check_type(field: dataclasses.Field, value: Any) -> None:
    kind = field.metadata["kind"]
    if value is None and field.name in _MAY_BE_NONE:
        return
    if field.name == "data" and isinstance(value, list):
        fits = len(value) > 0 and all(isinstance(v, str) for v in value)
    elif kind is str:
        fits = isinstance(value, str)
    else:
        numbers = int if kind is int else (int, float)
        fits = isinstance(value, numbers) and not isinstance(value, bool)
        fits = fits and (not isinstance(value, int) or abs(value) < LARGEST) and value != math.inf
    if not fits:
        expected = {int: "a whole number below 2⁵³", float: "a finite number"}.get(kind, "text")
        raise ValueError(f"{field.name}={shown(value)}: expected {expected}")


def default_of(name: str) -> str:
    """What --help says of an option's default."""
    if name in FROM_NOTHING:
        tuned = FROM_A_MODEL.get(name, f"the model's context, up to {MOST_CONTEXT}")
        return f" (default {FROM_NOTHING[name]}; with --init-from {tuned})"
    default = OPTIONS[name].default
    return "" if default is None else f" (default {default})"


def read_toml(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file.  Raises ValueError for what is not TOML, or no option, by
    name."""
    try:
        tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError:
        raise ValueError("--config needs Python 3.11 or later, or: pip install tomli") from None
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        options = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # not TOML
        raise ValueError(f"{path} is not valid TOML: {error!s:.200}") from None
    options = {name.replace("-", "_"): value for name, value in options.items()}
    for name, value in options.items():
        if isinstance(value, dict):
            raise ValueError(
                f"{path}: [{name:.80}] is a section; options stand in the file without any"
            )
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
            raise ValueError(f"{path}: {shown(name)} is not an option of training; {hint}")
    return options
