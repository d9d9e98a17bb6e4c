"""All options of tuning, by supervision or by preferences; those of rewards are in
rollout_config.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from numgpt.data.finding import absolute, absolute_model
from numgpt.models.lora import ALL_LINEAR, LoRAConfig
from numgpt.objectives.dpo import LOSSES, SMOOTHED, WITHOUT_REFERENCE
from numgpt.options import OptionError, number, one_of, text, texts, truth, whole
from numgpt.runtime import DTYPES
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES
from numgpt.tokenizer.conversation import template_variables
from numgpt.training import defaults
from numgpt.training.config import RunConfig, option, options_of


@dataclass
class TuningConfig(RunConfig):
    """The options that all kinds of tuning have."""

    length_option = "max_length"
    # Times that each example is seen, batch size, learning rate of a whole model: by how many there
    # are at most, and else; and the learning rate of an adapter (defaults.py).
    few: ClassVar[tuple[tuple[float, ...], ...]] = ()
    many: ClassVar[tuple[float, ...]]
    lora_lr: ClassVar[float]
    # Options without which there is no run, and what they are.
    needed: ClassVar[dict[str, str]] = {
        "model": "the model to tune",
        "data": "the examples that it learns from",
    }
    may_change = RunConfig.may_change | {"grad_accum", "lora_dropout", "show", "answers"}

    model: str = option(
        None, "the model to tune: a directory or a name", "model", text(), absolute_model
    )
    dtype: str = option(
        DTYPES[0],
        f"what the matrices of an adapter's base are kept as: {', '.join(DTYPES)}; bfloat16 with"
        " no adapter: what products are made in",
        "model",
        one_of(DTYPES),
    )
    data: str | list[str] = option(
        None, "JSON lines: files, directories, globs or - (also .gz)", "data", texts(), absolute
    )
    val_data: str | list[str] | None = option(
        None, "JSON lines that are held out", "data", texts(), absolute
    )
    val_fraction: float = option(
        0.0,
        "fraction of the examples that is held out",
        "data",
        number(0, 1, hint="; 0.1 holds a tenth out"),
    )
    max_length: int | None = option(
        None,
        f"tokens of an example (default: the model's context, up to {defaults.MOST_LENGTH})",
        "data",
        whole(1),
    )
    chat_format: str | None = option(
        None,
        f"write conversations as {' or '.join(CHAT_TEMPLATES)}, whatever the template",
        "data",
        one_of(CHAT_TEMPLATES),
    )
    chat_var: str | list[str] | None = option(
        None, "NAME=VALUE for the chat template, such as enable_thinking=false", "data", texts()
    )
    show: int = option(
        0, "examples to print before training, what is trained on «marked»", "data", whole(0)
    )

    lora_r: int = option(8, "rank of the adapter; 0: tune the whole model", "adapter", whole(0))
    lora_alpha: float | None = option(
        None, "its scale is alpha / r (default: 2 r)", "adapter", number()
    )
    lora_targets: str = option(
        ALL_LINEAR,
        "projections that it is for, separated by commas",
        "adapter",
        text(f"the names of projections, or {ALL_LINEAR}", lambda names: names.strip(", ")),
    )
    lora_dropout: float = option(
        0.0, "fraction of its inputs dropped in training", "adapter", number(0, 1)
    )
    use_rslora: bool = option(False, "scale by alpha / √r", "adapter", truth())

    epochs: float | None = option(
        None,
        "times that each example is seen, where no steps are given",
        "schedule",
        number(above=0, below=1_000_000),
    )

    weight_decay: float = option(0.0, "decoupled decay of matrices", "schedule", number(0))

    @property
    def stored(self) -> str:
        """What the model's matrices are kept as."""
        return self.dtype if self.lora_r else DTYPES[0]

    @property
    def products(self) -> str:
        return DTYPES[0] if self.lora_r else self.dtype

    @property
    def has_dropout(self) -> bool:
        return self.dropout > 0 or (self.lora_r > 0 and self.lora_dropout > 0)

    @property
    def reads_base(self) -> bool:
        """Whether the model's own files are needed once the run has begun."""
        return self.lora_r > 0

    def needed_models(self) -> list[tuple[str, str]]:
        """Names of options, and the files or directories there whose models are read later on."""
        return [("model", self.model)] if self.reads_base and os.path.exists(self.model) else []

    @property
    def uses(self) -> int:
        """How many steps a batch is used for."""
        return 1

    @property
    def example_length(self) -> int:
        """The most tokens of what is made of a record."""
        return self.longest

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
        super().validate()
        for name, what in self.needed.items():
            if getattr(self, name) is None:
                raise OptionError(f"give {{{name}:name}}, {what}")
            if not getattr(self, name):
                raise OptionError.of(self, f"{{{name}}}: name one")
        if self.val_data is not None and self.val_fraction:
            raise OptionError(
                "{val_data:name} cannot be combined with {val_fraction:name}: choose one"
            )
        template_variables(self.chat_vars)
        if self.dtype == "int8" and not self.lora_r:
            raise OptionError.of(
                self, "{dtype} is not trained, and {lora_r} trains all: leave one out"
            )
        if self.lora_r:
            with self.naming_adapter_options():
                self.lora().validate()

    @contextmanager
    def naming_adapter_options(self) -> Iterator[None]:
        """What is wrong with PEFT's options within is said in the names that they have here."""
        try:
            yield
        except OptionError as error:
            raise error.renamed({"r": "lora_r", "target_modules": "lora_targets"}) from None

    def set_schedule(self, examples: int) -> None:
        """Give what is not chosen its value, once it is known how many examples there are."""
        for values in defaults.schedule(self, examples):
            self.fill(values)


@dataclass
class TuneConfig(TuningConfig):
    """The options of supervised tuning."""

    kind, command = "sft", "tune sft"
    few, many, lora_lr = defaults.FEW, defaults.MANY, defaults.LORA_LR

    answers: int = option(
        20,
        "answers, trained on and held out, that are asked for at the end; 0: none",
        "data",
        whole(0),
    )


@dataclass
class ReferenceConfig(TuningConfig):
    """The options of objectives that compare the policy with the model that it began as."""

    many, lora_lr = defaults.PREFERENCES, defaults.PREFERENCES_LORA_LR
    sequences = 2

    beta: float = option(
        0.1,
        "how dearly leaving the reference is paid for; of simpo and orpo the margin's weight",
        "objective",
        number(above=0),
    )

    @property
    def has_reference(self) -> bool:
        """Whether the objective needs the reference's log-probabilities."""
        return True


@dataclass
class DPOConfig(ReferenceConfig):
    """The options of direct preference optimisation (objectives/dpo.py)."""

    kind, command = "dpo", "tune dpo"

    loss_type: str = option(
        "sigmoid", f"the objective: {', '.join(LOSSES)}", "objective", one_of(LOSSES)
    )
    label_smoothing: float = option(
        0.0,
        f"fraction of preferences that are wrong, for {', '.join(sorted(SMOOTHED))}",
        "objective",
        number(0, 0.5),
    )
    gamma: float = option(0.5, "the margin that simpo asks for", "objective", number(0))

    def validate(self) -> None:
        super().validate()
        if self.gamma != options_of(DPOConfig)["gamma"].default and self.loss_type != "simpo":
            raise OptionError.of(self, "{gamma} is not for {loss_type}: it is the margin of simpo")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise OptionError.of(
                self, "{label_smoothing} is not for {loss_type}: leave it out, or choose sigmoid"
            )

    @property
    def has_reference(self) -> bool:
        return self.loss_type not in WITHOUT_REFERENCE


@dataclass
class KTOConfig(ReferenceConfig):
    """The options of KTO (objectives/kto.py)."""

    kind, command = "kto", "tune kto"

    desirable_weight: float = option(1.0, "of good completions", "objective", number(above=0))
    undesirable_weight: float = option(1.0, "of bad completions", "objective", number(above=0))


@dataclass
class RewardConfig(TuningConfig):
    """The options of a reward model (objectives/reward.py)."""

    kind, command = "reward", "tune reward"
    many, lora_lr = defaults.REWARD, defaults.REWARD_LORA_LR
    sequences = 2

    center_coefficient: float = option(
        0.0,
        "weight of (s⁺ + s⁻)², which keeps scores around 0; 0.01 is usual",
        "objective",
        number(0),
    )
