"""What a run trains on: where its batches come from, what a step minimises, what is shown of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from numgpt.data.batch import Batch
from numgpt.data.corpus import TokensFile, check_tokens
from numgpt.layers import TokenStatistics
from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.options import AboutOptions
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.checkpoint import RunState
from numgpt.training.config import RunConfig
from numgpt.training.records import Callback
from numgpt.training.step import Sums, Task


class TrainingError(AboutOptions, RuntimeError):
    """Training can't go on: the loss is not finite, or there is no reward."""


class RunTask(Task[Any], ABC):
    """All that the loop asks of what it trains on: that of step.Task, and what is between steps. Of
    the sums of a step, "loss" and "tokens" (that were read) are reported."""

    validates: bool = True  # whether anything is held out
    keeps_head: ClassVar[bool] = True  # whether a score head belongs to what the run makes
    config: RunConfig

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        """The tokens of the run are in `out`, and have been checked."""
        self.state, self.tokenizer, self.config = state, tokenizer, state.config

    @classmethod
    @abstractmethod
    def prepare(
        cls, config: Any, out: Path, staged: Path, report: Callback
    ) -> tuple[RunState, BaseTokenizer]:
        """Everything that a run begins with, its files in the directory `staged`."""

    @abstractmethod
    def __str__(self) -> str:
        """How much there is to train on."""

    @classmethod
    def restore(cls, state: RunState, out: Path, tokenizer: BaseTokenizer) -> None:
        """Check the tokens of a run that goes on; encode them again where their file is missing."""
        check_tokens(out, state.tokens, lambda: cls.encode_again(state.config, out, tokenizer))

    @classmethod
    @abstractmethod
    def encode_again(cls, config: Any, out: Path, tokenizer: BaseTokenizer) -> TokensFile:
        """Write the tokens of a run's data into its directory."""

    @abstractmethod
    def next_step(self) -> list[Any]:
        """The batches of the next step."""

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, float]:
        """What is reported beside the loss of the steps that have these sums."""

    @abstractmethod
    def held_out_loss(self, model: LanguageModel) -> float:
        """What the best weights have the least of."""

    @abstractmethod
    def sample(self) -> tuple[str, str]:
        """A prompt, and how the model goes on."""

    def remarks(self) -> Iterable[str]:
        """What a person should know of the steps so far; each is told once."""
        return ()


class NextTokens(RunTask):
    """A step's loss is Σ -log p(target) / n over the n targets that count in all its batches, of a
    text or of examples alike."""

    statistics: ClassVar[bool]  # whether accuracy and entropy of what is trained on are reported

    @abstractmethod
    def held_out(self) -> Iterable[Batch]:
        """The batches of a validation, the same every time."""

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        return {"targets": sum(batch.counted for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: Batch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        state = self.state
        seen = TokenStatistics() if self.statistics else None
        loss, gradients = model.loss_and_grads(
            batch.ids,
            batch.targets,
            state.rng if state.config.has_dropout else None,
            weights=1 / max(1, totals["targets"]),
            add_to=add_to,
            statistics=seen,
        )
        sums: Sums = {"loss": loss, "tokens": batch.tokens}
        if seen is not None:
            sums |= {"targets": seen.tokens, "correct": seen.correct, "entropy": seen.entropy}
        return sums, gradients

    def metrics(self, sums: Sums) -> dict[str, float]:
        if not sums.get("targets"):
            return {}
        return {
            "mean_token_accuracy": sums["correct"] / sums["targets"],
            "entropy": sums["entropy"] / sums["targets"],
            "num_tokens": self.state.tokens_seen,
        }

    def held_out_loss(self, model: LanguageModel) -> float:
        """The mean loss of all that is held out."""
        batches = list(self.held_out())
        count = max(1, sum(batch.counted for batch in batches))
        return sum(model.loss(batch.ids, batch.targets, 1 / count) for batch in batches)
