"""All options of rewards: of what learns from completions that the policy itself has written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from numgpt.objectives.grpo import LEVELS, LOSS_TYPES, SCALES
from numgpt.options import OptionError, Rule, number, one_of, text, texts, truth, whole
from numgpt.training import defaults
from numgpt.training.config import MOST_ACCUMULATED, option, options_of
from numgpt.training.tune_config import TuningConfig


def _numbers() -> Rule:
    """A number, or several, which a command line has as texts."""

    def fits(value: Any) -> bool:
        try:
            each = [*map(float, value if isinstance(value, list) else [value])]
        except (TypeError, ValueError):
            return False
        return len(each) > 0 and all(map(math.isfinite, each))

    return Rule(list, "a number for each reward", fits)


def absolute_rewards(names: str | list[str]) -> list[str]:
    """The same rewards from anywhere: FILE.py:FUNCTION, or a directory, by its whole path."""

    def absolute(name: str) -> str:
        path, colon, function = name.rpartition(":")
        if colon and path.endswith(".py"):
            return f"{os.path.abspath(path)}:{function}"
        return os.path.abspath(name) if os.path.isdir(name) else name

    return [absolute(name) for name in ([names] if isinstance(names, str) else names)]


@dataclass
class RolloutConfig(TuningConfig):
    """The options of objectives that reward what the policy itself has written."""

    many, lora_lr = defaults.ROLLOUTS, defaults.ROLLOUTS_LORA_LR
    needed: ClassVar[dict[str, str]] = {"model": "the model to tune"}
    may_change = TuningConfig.may_change - {"grad_accum"}

    grad_accum: int = option(
        4, "batches whose gradients make one step", "schedule", whole(1, MOST_ACCUMULATED)
    )
    task: str | None = option(
        None,
        "reasoning_gym:NAME or reasoning_gym:NAME,option=value, in place of files: its questions,"
        " and its reward",
        "data",
        text(),
    )
    task_size: int = option(1000, "questions of it", "data", whole(1))
    reward: str | list[str] | None = option(
        None,
        "exact, number, json, regex:PATTERN, length:N, FILE.py:FUNCTION, or the directory of a"
        " reward model; several are added up",
        "objective",
        texts(),
        absolute_rewards,
    )
    reward_weights: Any = option(None, "one for each reward (default: 1)", "objective", _numbers())
    max_completion_length: int = option(64, "tokens of a completion", "objective", whole(1))
    temperature: float = option(
        1.0, "of the sampling, and of the policy that is trained", "objective", number(above=0)
    )
    iterations: int = option(1, "steps that learn from the same completions", "objective", whole(1))
    epsilon: float = option(
        0.2, "how far from 1 a ratio of probabilities may go", "objective", number(above=0)
    )
    entropy_coef: float = option(0.0, "weight of a bonus for entropy", "objective", number())
    mask_truncated: bool = option(False, "what was cut off teaches nothing", "objective", truth())

    @property
    def rewards(self) -> list[str]:
        return [self.reward] if isinstance(self.reward, str) else self.reward or []

    @property
    def weights(self) -> list[float]:
        """A weight for each reward, and for the task's."""
        given = self.reward_weights
        if given is None:
            return [1.0] * (len(self.rewards) + (self.task is not None))
        return [*map(float, [given] if isinstance(given, str) else given)]

    def needed_models(self) -> list[tuple[str, str]]:
        judges = [("reward", name) for name in self.rewards if os.path.isdir(name)]
        return super().needed_models() + judges

    @property
    def uses(self) -> int:
        return self.iterations

    @property
    def example_length(self) -> int:
        """The most tokens of a prompt."""
        return self.longest - self.max_completion_length

    def validate(self) -> None:
        super().validate()
        if not self.data and self.task is None:
            raise OptionError("give {data:name}, the prompts, or {task:name} reasoning_gym:NAME")
        if self.data and self.task is not None:
            raise OptionError.of(self, "{task} cannot be combined with {data:name}: choose one")
        if self.task is None and not self.rewards:
            raise OptionError("give {reward:name}, what completions are rewarded for")
        if self.task is None and self.task_size != options_of(type(self))["task_size"].default:
            raise OptionError.of(self, "{task_size} is of a {task:name}, and none is given")
        if self.task is not None and self.val_data is not None:
            raise OptionError.of(
                self, "{val_data} cannot be combined with {task}: {val_fraction:name} holds out"
            )
        expected = len(self.rewards) + (self.task is not None)
        if len(self.weights) != expected:
            raise OptionError.of(
                self,
                "{reward_weights}: expected {0}, a number for each reward (the task's is the last)",
                expected,
            )
        if not any(self.weights):
            raise OptionError.of(self, "{reward_weights}: one at least must not be 0")
        if self.max_length is not None and self.max_completion_length >= self.max_length:
            raise OptionError.of(
                self, "{max_completion_length} leaves no room for a prompt in {max_length}"
            )


@dataclass
class GRPOConfig(RolloutConfig):
    """The options of group-relative policy optimisation (objectives/grpo.py)."""

    kind, command = "grpo", "tune grpo"

    group_size: int = option(8, "completions of a prompt", "objective", whole(2))
    loss_type: str = option(
        "dapo", f"what the sum is over: {', '.join(LOSS_TYPES)}", "objective", one_of(LOSS_TYPES)
    )
    level: str = option(
        "token", f"what has a ratio: {' or '.join(LEVELS)} (GSPO)", "objective", one_of(LEVELS)
    )
    epsilon_high: float | None = option(
        None, "… above 1 (default: as below)", "objective", number(above=0)
    )
    scale_rewards: str = option(
        "group",
        f"whose standard deviation divides an advantage: {', '.join(SCALES)}",
        "objective",
        one_of(SCALES),
    )
    beta: float = option(0.0, "what leaving the reference costs", "objective", number(0))
    kl: str = option(
        "corrected",
        "how: corrected (ρ·k3) or k3, in the loss; reward (k1)",
        "objective",
        one_of(("corrected", "k3", "reward")),
    )

    @property
    def sequences(self) -> int:  # type: ignore[override]
        return self.group_size

    @property
    def reads_base(self) -> bool:
        return self.lora_r > 0 or self.beta > 0

    def validate(self) -> None:
        super().validate()
        if self.kl != options_of(GRPOConfig)["kl"].default and not self.beta:
            raise OptionError.of(self, "{kl} has no effect without {beta:name}: give it, or none")


@dataclass
class PPOConfig(RolloutConfig):
    """The options of proximal policy optimisation (objectives/ppo.py)."""

    kind, command = "ppo", "tune ppo"
    many = defaults.PPO

    iterations: int = option(4, "steps that learn from the same completions", "objective", whole(1))
    kl_coef: float = option(
        0.05, "what a token pays for leaving the reference", "objective", number(0)
    )
    gamma: float = option(1.0, "worth of a reward a token later", "objective", number(0, most=1))
    lam: float = option(
        0.95, "λ of the advantages: 0 trusts values, 1 rewards", "objective", number(0, most=1)
    )
    vf_coef: float = option(0.1, "weight of the values' loss", "objective", number(0))
    cliprange_value: float = option(
        0.2, "how far from what it was a value may go", "objective", number(above=0)
    )

    reads_base = True
