"""All options of a training run: flags, TOML files and checkpoints share these names."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import math
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numgpt.data.finding import OTHER_WEIGHTS
from numgpt.formats.families import FAMILIES
from numgpt.messages import shown
from numgpt.models.lora import ALL_LINEAR, LoRAConfig
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES
from numgpt.tokenizer.conversation import template_variables

# Options whose default depends on where the weights come from: at random, or from another model.
FROM_NOTHING = {"lr": 1e-3, "steps": 2000, "warmup": 100, "batch_size": 12, "block_size": 64}
FROM_NOTHING |= {"log_every": 100, "eval_every": 250, "sample_every": 500, "save_every": 250}
FROM_A_MODEL = {"lr": 5e-5, "steps": 200, "warmup": 20, "batch_size": 4}
FROM_A_MODEL |= {"log_every": 10, "eval_every": 50, "sample_every": 100, "save_every": 50}
MOST_LENGTH = 1024  # tokens of an example, without --max-length
MOST_EPOCHS = MOST_ACCUMULATED = 1_000_000
LORA_LR, WARMUP = 1e-3, 0.03
# By how many examples there are to tune on, at most: times that each is seen, batch size, learning
# rate of a whole model. Fewer are seen more often. Found with SmolLM2, see training/README.md.
FEW = ((30, 15, 4, 5e-5), (100, 10, 4, 5e-5), (500, 8, 4, 2e-5))
MANY = (3, 8, 2e-5)
# What --help says of options whose default the data decides.
TUNED: dict[str, Any] = {
    "steps": "from --epochs",
    "batch_size": f"{MANY[1]}; 4 for up to 500 examples",
    "warmup": f"{WARMUP:.0%} of the steps",
    "epochs": "15 for up to 30 examples, 10 up to 100, 8 up to 500, else 3",
}
TUNED |= {"lr": f"{LORA_LR:g}; of the whole model {MANY[2]:g}, 5e-5 for up to 100 examples"}
TUNED |= {"log_every": "a tenth, up to 10"}
TUNED |= {"eval_every": "an epoch, up to 200", "sample_every": "as --eval-every"}
TUNED |= {"save_every": "an epoch, up to 50"}
MOST_CONTEXT = 512  # tokens; of a model's own context, when it is tuned without --block-size


def _option(default: Any, help: str, group: str, kind: type | None = None) -> Any:
    """kind is the type of an option without a default."""
    metadata = {"help": help, "group": group, "kind": kind or type(default)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """The options that all kinds of runs have."""

    kind: ClassVar[str]  # by which a checkpoint is known
    command: ClassVar[str]  # of numgpt, which makes such runs
    length_option: ClassVar[str]  # the most tokens that a sequence of a batch has

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

    log_every: int = _option(None, "steps between reports", "intervals", int)
    eval_every: int = _option(None, "steps between validations", "intervals", int)
    sample_every: int = _option(None, "steps between samples; 0: none", "intervals", int)
    save_every: int = _option(None, "steps between checkpoints", "intervals", int)

    keep: str = _option(
        "best",
        "weights that DIR holds: best, of the lowest validation loss, or last; the others are in"
        " DIR/last or DIR/best",
        "intervals",
    )

    dropout: float = _option(
        0.0, "fraction of activations dropped in training; of attention only in a Llama", "model"
    )

    @property
    def lowest_lr(self) -> float:
        """The learning rate at the end of the cosine."""
        return self.lr / 10 if self.min_lr is None else self.min_lr

    @property
    def has_dropout(self) -> bool:
        """Whether anything is dropped in training."""
        return self.dropout > 0

    @property
    def longest(self) -> int:
        """The most tokens that a sequence of a batch has."""
        raise NotImplementedError

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
            value, least = getattr(self, field.name), _LEAST.get(field.name)
            if least is not None and value is not None and not value >= least:
                raise ValueError(f"{field.name}={shown(value)}: expected {least} or more")
        if self.keep not in OTHER_WEIGHTS:
            raise ValueError(f"keep={shown(self.keep)}: expected {' or '.join(OTHER_WEIGHTS)}")
        if self.grad_accum > MOST_ACCUMULATED:
            raise ValueError(f"grad_accum={self.grad_accum}: expected up to {MOST_ACCUMULATED:,}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected a number above 0")
        if self.lr is not None and self.lowest_lr > self.lr:
            raise ValueError(
                f"min_lr={self.min_lr} is above lr={self.lr}: lower it, 0.1 · lr is usual"
            )
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more and below 1")

    def cut_warmup(self) -> None:
        """A warm-up that would not end before the run does is cut to a tenth of it, with a
        warning."""
        if self.warmup >= self.steps and (tenth := self.steps // 10) < self.warmup:
            warnings.warn(
                f"warmup={self.warmup} is no less than steps={self.steps}: cut to {tenth}",
                stacklevel=2,
            )
            self.warmup = tenth


@dataclass
class TrainConfig(RunConfig):
    """The options of training on text. What is None at first gets its default from FROM_NOTHING, or
    from FROM_A_MODEL where init_from is given; block_size then is the model's context, up to
    MOST_CONTEXT."""

    kind = command = "train"
    length_option = "block_size"

    data: str | list[str] | None = _option(
        None, "text: files, directories or globs; none: the Python language reference", "data", str
    )
    val_fraction: float = _option(
        0.1, "fraction of the tokens, at the end, held out for validation", "data"
    )
    tokenizer: str = _option(
        "bpe", "bpe (trained on the text), char, or a directory that holds one", "data"
    )
    vocab_size: int = _option(1024, "size of the vocabulary that --tokenizer bpe learns", "data")

    special_tokens: bool = _option(
        False, "special tokens in the text (<|endoftext|>) are meant, not spelt", "data"
    )

    arch: str = _option("gpt2", f"family of the model: {' or '.join(FAMILIES)}", "model")
    n_layer: int = _option(4, "blocks", "model")
    n_head: int = _option(4, "attention heads a block", "model")
    n_kv_head: int = _option(
        0, "KV heads that they share, where the family can; 0: one for each", "model"
    )
    n_embd: int = _option(128, "width of the residual stream", "model")
    block_size: int | None = _option(None, "context length in tokens", "model", int)
    init_from: str | None = _option(
        None, "model to fine-tune: a directory or a name; brings tokenizer and sizes", "model", str
    )
    eval_batches: int = _option(20, "batches of a validation, always the same", "intervals")

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
    def longest(self) -> int:
        return self.context

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        super().validate()
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction={self.val_fraction}: expected a number above 0 and below 1; 0.1"
                " holds a tenth out"
            )
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


@dataclass
class TuneConfig(RunConfig):
    """The options of supervised tuning. What is None at first is decided by the data, and by
    whether an adapter or the whole model is tuned."""

    kind, command = "sft", "tune sft"
    length_option = "max_length"

    model: str = _option(None, "the model to tune: a directory or a name", "model", str)
    data: str | list[str] = _option(
        None, "JSON lines: files, directories, globs or - (also .gz)", "data", str
    )
    val_data: str | list[str] | None = _option(None, "JSON lines that are held out", "data", str)
    val_fraction: float = _option(0.0, "fraction of the examples that is held out", "data")
    max_length: int | None = _option(
        None,
        f"tokens of an example (default: the model's context, up to {MOST_LENGTH})",
        "data",
        int,
    )
    chat_format: str | None = _option(
        None,
        f"write conversations as {' or '.join(CHAT_TEMPLATES)}, whatever the template",
        "data",
        str,
    )
    chat_var: str | list[str] | None = _option(
        None, "NAME=VALUE for the chat template, such as enable_thinking=false", "data", str
    )
    answers: int = _option(
        20, "answers, trained on and held out, that are asked for at the end; 0: none", "data"
    )
    show: int = _option(0, "examples to print before training, what is trained on «marked»", "data")

    lora_r: int = _option(8, "rank of the adapter; 0: tune the whole model", "adapter")
    lora_alpha: float | None = _option(
        None, "its scale is alpha / r (default: 2 r)", "adapter", float
    )
    lora_targets: str = _option(
        "all-linear", "projections that it is for, separated by commas", "adapter"
    )
    lora_dropout: float = _option(0.0, "fraction of its inputs dropped in training", "adapter")
    use_rslora: bool = _option(False, "scale by alpha / √r", "adapter")

    epochs: float | None = _option(
        None, "times that each example is seen, where --steps is not given", "schedule", float
    )

    weight_decay: float = _option(0.0, "decoupled decay of matrices", "schedule")

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or (self.lora_r > 0 and self.lora_dropout > 0)

    @property
    def longest(self) -> int:
        assert self.max_length is not None  # once the model has decided it
        return self.max_length

    @property
    def chat_vars(self) -> list[str]:
        return [self.chat_var] if isinstance(self.chat_var, str) else self.chat_var or []

    def lora(self) -> LoRAConfig:
        """The adapter's options."""
        targets: list[str] | str = self.lora_targets
        if targets != ALL_LINEAR and re.fullmatch(r"[\w.,\s]*", self.lora_targets):
            targets = [name.strip() for name in self.lora_targets.split(",") if name.strip()]
        alpha = 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha
        return LoRAConfig(self.lora_r, alpha, targets, self.lora_dropout, self.use_rslora)

    def validate(self) -> None:
        """Raises ValueError naming the option that is invalid."""
        super().validate()
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name}={shown(getattr(self, name))}: name one")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(
                f"val_fraction={self.val_fraction}: expected 0 or more and below 1; 0.1 holds a"
                " tenth out"
            )
        if self.val_data is not None and self.val_fraction:
            raise ValueError("val_data cannot be combined with val_fraction: choose one")
        if self.epochs is not None and not 0 < self.epochs <= MOST_EPOCHS:
            raise ValueError(
                f"epochs={self.epochs}: expected a number above 0, up to {MOST_EPOCHS:,}"
            )
        if self.chat_format is not None and self.chat_format not in CHAT_TEMPLATES:
            names = " or ".join(CHAT_TEMPLATES)
            raise ValueError(f"chat_format={shown(self.chat_format)}: expected {names}")
        template_variables(self.chat_vars)
        if not self.lora_targets.strip(", "):
            raise ValueError(
                f"lora_targets={shown(self.lora_targets)}: name projections, or {ALL_LINEAR}"
            )
        if self.lora_r:
            with self.naming_adapter_options():
                self.lora().validate()

    @contextlib.contextmanager
    def naming_adapter_options(self) -> Iterator[None]:
        """What is wrong with PEFT's options within is said in the names that they have here."""
        try:
            yield
        except ValueError as error:
            name, sign, rest = re.split("([=:])", str(error), maxsplit=1)
            ours = {"r": "lora_r", "target_modules": "lora_targets"}.get(name, name)
            raise ValueError(f"{ours}{sign}{rest}") from None

    def set_schedule(self, examples: int) -> None:
        """Give what is not chosen its value, once it is known how many examples there are to train
        on."""
        usual = next((values for most, *values in FEW if examples <= most), MANY)
        epochs, batch_size, whole_lr = usual
        chosen = {"epochs": float(epochs), "batch_size": batch_size}
        self._fill(chosen | {"lr": LORA_LR if self.lora_r else whole_lr})
        batches_in_epoch = -(-examples // self.batch_size)
        steps_in_epoch = max(1, batches_in_epoch // self.grad_accum)
        assert self.epochs is not None
        steps = max(1, math.ceil(self.epochs * batches_in_epoch / self.grad_accum))
        self._fill({"steps": steps})
        self._fill({"warmup": math.ceil(WARMUP * self.steps)})
        intervals = {"log_every": max(1, min(10, self.steps // 10))}
        intervals |= {"eval_every": min(steps_in_epoch, 200), "save_every": min(steps_in_epoch, 50)}
        self._fill(intervals | {"sample_every": intervals["eval_every"]})

    def _fill(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


# The options that have a least value.
_FROM_ONE = "vocab_size n_layer n_head n_embd block_size steps batch_size grad_accum log_every"
_FROM_ONE += " eval_every eval_batches save_every max_length"
_FROM_ZERO = "warmup weight_decay grad_clip seed sample_every min_lr n_kv_head lora_r show answers"
_LEAST = dict.fromkeys(_FROM_ONE.split(), 1) | dict.fromkeys(_FROM_ZERO.split(), 0)
PATHS = ("data", "val_data")  # of files
LISTED = (*PATHS, "chat_var")  # options of which there can be several
LARGEST_FILE = 1 << 20  # bytes of options
LARGEST = 1 << 53  # whole numbers above it are no option's


# What other programs call an option.
OTHERS_NAMES = {"learning_rate": "lr", "max_iters": "steps", "max_steps": "steps", "rank": "lora_r"}
OTHERS_NAMES |= {"r": "lora_r", "num_train_epochs": "epochs", "num_epochs": "epochs"}
OTHERS_NAMES |= {"per_device_train_batch_size": "batch_size", "warmup_steps": "warmup"}
OTHERS_NAMES |= {"gradient_accumulation_steps": "grad_accum", "output_dir": "out"}


GROUPS = ("data", "model", "adapter", "schedule", "intervals")  # of options, in --help


def options_of(config_class: type[RunConfig]) -> dict[str, dataclasses.Field]:
    """The options of a kind of run, by name."""
    return {field.name: field for field in dataclasses.fields(config_class)}


OPTIONS = options_of(TrainConfig)


def _check_type(field: dataclasses.Field, value: Any) -> None:
    kind = field.metadata["kind"]
    if value is None and field.default is None:
        return
    if field.name in LISTED and isinstance(value, list):
        fits = len(value) > 0 and all(isinstance(v, str) for v in value)
    elif kind in (str, bool):
        fits = isinstance(value, kind)
    else:
        numbers = int if kind is int else (int, float)
        fits = isinstance(value, numbers) and not isinstance(value, bool)
        fits = fits and (not isinstance(value, int) or abs(value) < LARGEST) and value != math.inf
    if not fits:
        expected = {
            int: "a whole number" + (" below 2⁵³" if isinstance(value, int) else ""),
            float: "a finite number",
            bool: "true or false",
        }.get(kind, "text")
        raise ValueError(f"{field.name}={shown(value)}: expected {expected}")


def default_of(name: str, config_class: type[RunConfig] = TrainConfig) -> str:
    """What --help says of an option's default."""
    if config_class is TuneConfig and name in TUNED:
        return f" (default {TUNED[name]})"
    if config_class is TrainConfig and name in FROM_NOTHING:
        tuned = FROM_A_MODEL.get(name, f"the model's context, up to {MOST_CONTEXT}")
        return f" (default {FROM_NOTHING[name]}; with --init-from {tuned})"
    default = options_of(config_class)[name].default
    return "" if default is None or default is False else f" (default {default})"


def read_toml(path: str | Path, known: Collection[str] = OPTIONS.keys()) -> dict[str, Any]:
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
        options = tomllib.loads(text.decode("utf-8-sig"))
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
