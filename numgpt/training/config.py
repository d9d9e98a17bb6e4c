"""All options of a training run: flags, TOML files and checkpoints share these names.

What is None at first gets its default from defaults.py, once it is known what decides it: whether
the weights are given, or how many examples there are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from numgpt.data.finding import OTHER_WEIGHTS, absolute, absolute_model
from numgpt.formats.families import FAMILIES
from numgpt.models.config import Config, Sizes
from numgpt.options import (
    OptionError,
    OptionWarning,
    Rule,
    number,
    one_of,
    optional,
    require,
    text,
    texts,
    truth,
    whole,
)
from numgpt.runtime import DTYPES, multiplies_rounded
from numgpt.training import defaults

MOST_ACCUMULATED = 1_000_000
GROUPS = ("data", "model", "adapter", "objective", "schedule", "intervals")  # of options, in --help


def option(
    default: Any, help: str, group: str, rule: Rule, absolute: Callable[[Any], Any] | None = None
) -> Any:
    """An option: its default, or None where others decide it, what --help says, what it may be, and
    where it names files, what names the same ones from anywhere."""
    rule = optional(rule) if default is None else rule
    metadata = {"help": help, "group": group, "rule": rule, "absolute": absolute}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    """The options that all kinds of runs have."""

    kind: ClassVar[str]  # by which a checkpoint is known
    command: ClassVar[str]  # of numgpt, which makes such runs
    length_option: ClassVar[str]  # the most tokens that a sequence of a batch has
    sequences: ClassVar[int] = 1  # that one of a batch stands for
    # Options that may change when a run goes on; the others can't.
    may_change: ClassVar[frozenset[str]] = frozenset(
        ("steps", "lr", "min_lr", "warmup", "weight_decay", "beta2", "grad_clip", "dropout")
    ) | {"log_every", "eval_every", "sample_every", "save_every"}

    steps: int = option(None, "optimizer steps", "schedule", whole(1))
    batch_size: int = option(None, "sequences, or groups of them, in a batch", "schedule", whole(1))
    grad_accum: int = option(
        1, "batches whose gradients make one step", "schedule", whole(1, MOST_ACCUMULATED)
    )
    lr: float = option(None, "highest learning rate", "schedule", number(above=0))
    min_lr: float | None = option(
        None, "learning rate at the end of the cosine (default: a tenth)", "schedule", number(0)
    )
    warmup: int = option(None, "steps of linear warm-up", "schedule", whole(0))
    weight_decay: float = option(0.1, "decoupled decay of matrices", "schedule", number(0))
    beta2: float = option(0.99, "AdamW's decay of the second moment", "schedule", number(0, 1))
    grad_clip: float = option(
        1.0, "largest global norm of the gradients; 0: no clipping", "schedule", number(0)
    )
    seed: int = option(1337, "seed of weights, batches and dropout", "schedule", whole(0))

    log_every: int = option(None, "steps between reports", "intervals", whole(1))
    eval_every: int = option(None, "steps between validations", "intervals", whole(1))
    sample_every: int = option(None, "steps between samples; 0: none", "intervals", whole(0))
    save_every: int = option(None, "steps between checkpoints", "intervals", whole(1))

    keep: str = option(
        "best",
        "weights that DIR holds: best, of the lowest validation loss, or last; the others are in"
        " DIR/last or DIR/best",
        "intervals",
        one_of(OTHER_WEIGHTS),
    )

    dropout: float = option(
        0.0,
        "fraction of activations dropped in training; of attention only in a Llama",
        "model",
        number(0, 1),
    )

    @property
    def products(self) -> str:
        """What products with matrices are made in: the dtype of LanguageModel.autocast."""
        raise NotImplementedError

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
        """The most tokens that a sequence of a batch has, once the model has decided it."""
        return getattr(self, self.length_option)

    def validate(self) -> None:
        """Raises OptionError naming the option that is invalid."""
        for name, field in options_of(type(self)).items():
            require(self, field.metadata["rule"], name)
        if self.lr is not None and self.lowest_lr > self.lr:
            raise OptionError.of(self, "{min_lr} is above {lr}: lower it, 0.1 · {lr:name} is usual")

    def make_absolute(self) -> None:
        """Name files by their whole paths, so that a run can go on from anywhere."""
        for name in options_of(type(self)):
            setattr(self, name, from_anywhere(self, name, getattr(self, name)))

    def warn_of_slow_products(self) -> None:
        """Products in bfloat16 may take as long as those in float32, which is no error."""
        if self.products != DTYPES[0] and not multiplies_rounded():
            slow = (
                "{dtype} is no faster here: its products need numgpt[onednn], and a CPU with the"
                " instructions avx512_bf16 (numgpt info tells)"
            )
            warnings.warn(OptionWarning.of(self, slow), stacklevel=2)

    def cut_warmup(self) -> None:
        """A warm-up that would not end before the run does is cut to a tenth of it, with a
        warning."""
        if self.warmup >= self.steps and (tenth := self.steps // 10) < self.warmup:
            warning = OptionWarning.of(self, "{warmup} is no less than {steps}: cut to {0}", tenth)
            warnings.warn(warning, stacklevel=2)
            self.warmup = tenth

    def fit_context(self, model: Config, most: int) -> None:
        """Give the most tokens of a sequence, where they are not chosen, their value: all of the
        model's context, up to `most`.  Raises OptionError for more than it has."""
        name, context = self.length_option, model.context_length
        self.fill({name: min(context, most)})
        if self.longest > context:
            longer = f"{{{name}}} is more than the model's {{0}}={{1}}: lower it"
            raise OptionError.of(self, longer, model.context_field, context)

    def fill(self, values: dict[str, Any]) -> None:
        """Give what is not chosen its value."""
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


@dataclass
class TrainConfig(RunConfig):
    """The options of training on text."""

    kind = command = "train"
    length_option = "block_size"
    may_change = RunConfig.may_change | {"batch_size", "grad_accum", "dtype", "eval_batches"}

    data: str | list[str] | None = option(
        None,
        "text: files, directories or globs; none: the Python language reference",
        "data",
        texts(),
        absolute,
    )
    val_fraction: float = option(
        0.1,
        "fraction of the tokens, at the end, held out for validation",
        "data",
        number(above=0, below=1, hint="; 0.1 holds a tenth out"),
    )
    tokenizer: str = option(
        "bpe", "bpe (trained on the text), char, or a directory that holds one", "data", text()
    )
    vocab_size: int = option(1024, "size of the vocabulary that bpe learns", "data", whole(1))
    special_tokens: bool = option(
        False, "special tokens in the text (<|endoftext|>) are meant, not spelt", "data", truth()
    )

    dtype: str = option(
        DTYPES[0],
        "what products with matrices are made in, float32 or bfloat16; weights stay in float32",
        "model",
        one_of(("float32", "bfloat16")),
    )
    arch: str = option(
        "gpt2", f"family of the model: {' or '.join(FAMILIES)}", "model", one_of(FAMILIES)
    )
    n_layer: int = option(4, "blocks", "model", whole(1))
    n_head: int = option(4, "attention heads a block", "model", whole(1))
    n_kv_head: int = option(
        0, "KV heads that they share, where the family can; 0: one for each", "model", whole(0)
    )
    n_embd: int = option(128, "width of the residual stream", "model", whole(1))
    block_size: int | None = option(None, "context length in tokens", "model", whole(1))
    init_from: str | None = option(
        None,
        "model to fine-tune: a directory or a name; brings tokenizer and sizes",
        "model",
        text(),
        absolute_model,
    )
    eval_batches: int = option(20, "batches a validation, always the same", "intervals", whole(1))

    def __post_init__(self) -> None:
        self.fill(defaults.FROM_NOTHING if self.init_from is None else defaults.FROM_A_MODEL)

    @property
    def products(self) -> str:
        return self.dtype

    def validate(self) -> None:
        super().validate()
        try:
            self.model_config(1, 1).validate()
        except OptionError as error:
            raise error.renamed(SIZES) from None

    def model_config(self, vocab_size: int, context_length: int) -> Config:
        """That of a new model of these sizes."""
        blocks = self.n_layer, self.n_head, self.n_kv_head, self.n_embd
        sizes = Sizes(vocab_size, context_length, *blocks)
        return FAMILIES[self.arch].model.config_class.of_sizes(self.arch, sizes)


# What a family's config calls the sizes.
SIZES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
SIZES |= {"num_key_value_heads": "n_kv_head", "hidden_size": "n_embd"}


def options_of(config_class: type[RunConfig]) -> dict[str, dataclasses.Field]:
    """The options of a kind of run, by name."""
    return {field.name: field for field in dataclasses.fields(config_class)}


def from_anywhere(config: RunConfig, name: str, value: Any) -> Any:
    """The value of an option, its files named by their whole paths."""
    absolute = options_of(type(config))[name].metadata["absolute"]
    return value if absolute is None or value is None else absolute(value)
