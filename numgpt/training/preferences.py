"""Direct preference optimisation: pairs of completions, one of them chosen (objectives/dpo.py).

The reference is the model that the run began as. Its log-probability of each completion is computed
once, before the first step, and kept in the run's directory: there is no second model in memory.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from numgpt.data.batch import IGNORED, Batch
from numgpt.data.example_set import ExampleSet
from numgpt.data.examples import ExampleEncoder
from numgpt.data.finding import REFERENCE_FILE
from numgpt.data.preferences import PairEncoder
from numgpt.files import replacing
from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.objectives import dpo
from numgpt.objectives.functions import Metrics
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.checkpoint import RunState
from numgpt.training.records import Callback, Note
from numgpt.training.step import Sums
from numgpt.training.tune_config import DPOConfig, ReferenceConfig
from numgpt.training.tuning import Tuning

Derived = tuple[float, np.ndarray, Metrics]  # loss, its derivative, metrics


class Compared(Tuning):
    """Pairs, chosen and rejected, of nearly equal length, and an objective of what the model makes
    of them: their tokens' log-probabilities (n, T), 0 where nothing counts."""

    encoder: ClassVar[type[ExampleEncoder]] = PairEncoder
    group = 2
    unit = "preference"
    counted: ClassVar[str] = "pairs"  # the name of their number among the sums
    # (model, *learnt(batch)) -> what is compared; and, with an objective of it, its gradients
    outputs: ClassVar[Callable[..., np.ndarray]] = staticmethod(LanguageModel.log_probs)
    outputs_and_grads: ClassVar[Callable[..., Any]] = staticmethod(LanguageModel.value_and_grads)

    def learnt(self, batch: Batch) -> tuple[Any, ...]:
        """What of a batch the model reads."""
        return batch.ids, batch.targets

    @abstractmethod
    def objective(self, batch: Batch, outputs: np.ndarray, totals: Sums) -> Derived:
        """A batch's part of the step's loss, its derivative by the outputs, and metrics."""

    def _compared(self, batch: Batch, outputs: np.ndarray, totals: Sums) -> Derived:
        if not np.isfinite(outputs).all() or not np.isfinite([*totals.values()]).all():
            return np.nan, np.zeros_like(outputs), {}  # which the loop tells
        return self.objective(batch, outputs, totals)

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        return {self.counted: sum(len(batch.numbers) for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: Batch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        loss, gradients, metrics = self.outputs_and_grads(
            model,
            *self.learnt(batch),
            lambda outputs: self._compared(batch, outputs, totals),
            self.state.rng if self.config.has_dropout else None,
            add_to=add_to,
        )
        sums = {name: value * totals[self.counted] for name, value in metrics.items()}
        sums |= {"loss": loss, "tokens": batch.tokens, self.counted: len(batch.numbers)}
        return sums, gradients

    def metrics(self, sums: Sums) -> dict[str, float]:
        own = [name for name in sums if name not in ("loss", "tokens", self.counted)]
        return {name: sums[name] / sums[self.counted] for name in own}

    def held_out_loss(self, model: LanguageModel) -> float:
        batches = list(self.held_out())
        totals, loss = self.totals(model, batches), 0.0
        for batch in batches:
            outputs = self.outputs(model, *self.learnt(batch))
            loss += self._compared(batch, outputs, totals)[0]
        return loss


class Referenced(Compared):
    """Groups of two completions, whose log-probabilities by the reference are known."""

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        super().__init__(state, out, tokenizer)
        self.reference = read_reference(out, state) if _has_reference(state) else None

    @classmethod
    def stage(cls, state: RunState, into: Path, report: Callback, encoder: ExampleEncoder) -> None:
        if _has_reference(state):
            report(Note("computing what the reference makes of each completion"))
            write_reference(into, state)

    @classmethod
    def restore(cls, state: RunState, out: Path, tokenizer: BaseTokenizer) -> None:
        super().restore(state, out, tokenizer)
        if not _has_reference(state):
            return
        try:
            read_reference(out, state)
        except (ValueError, FileNotFoundError):
            if state.model.adapter is None:
                raise  # the model that it was made by has been trained on
            with state.model.without_adapter():
                write_reference(out, state)


class Preferences(Referenced):
    """Pairs, and how much likelier the chosen one is than the rejected one."""

    config: DPOConfig

    def objective(self, batch: Batch, outputs: np.ndarray, totals: Sums) -> Derived:
        config = self.config
        chosen, rejected = np.split(outputs.sum(axis=1), 2)
        lengths, half = np.count_nonzero(batch.targets != IGNORED, axis=1), len(chosen)
        references = (None, None)
        if self.reference is not None:
            references = tuple(self.reference[batch.numbers].T.astype(outputs.dtype))
        loss, derivatives, metrics = dpo(
            chosen,
            rejected,
            *references,
            config.beta,
            config.loss_type,
            config.label_smoothing,
            config.gamma,
            (lengths[:half], lengths[half:]),
            totals[self.counted],
        )
        return loss, np.concatenate(derivatives)[:, None] * np.ones_like(outputs), metrics


def _has_reference(state: RunState) -> bool:
    assert isinstance(state.config, ReferenceConfig)
    return state.config.has_reference


def write_reference(directory: Path, state: RunState) -> None:
    """directory/reference.npz: of each pair the log-probabilities of both completions, by the model
    as it is."""
    examples = ExampleSet(directory, state.tokens, 2)
    logps = np.empty((len(examples), 2), np.float64)
    numbers = np.arange(len(examples))
    with state.model.autocast(state.config.products):  # as the policy will be
        for batch in examples.in_order(numbers, state.config.batch_size):
            logp = state.model.log_probs(batch.ids, batch.targets).sum(axis=1, dtype=np.float64)
            logps[batch.numbers] = logp.reshape(2, -1).T
    with replacing(directory / REFERENCE_FILE) as file:
        np.savez(file, logps=logps, tokens=state.tokens.sha256)  # type: ignore[arg-type]


def read_reference(directory: Path, state: RunState) -> np.ndarray:
    """(pairs, 2).  Raises FileNotFoundError or ValueError where the file is missing, damaged, or of
    other tokens."""
    path = directory / REFERENCE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which holds what the model that the run began as makes of the"
            " data: put a copy of it back, or start a new run"
        )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            logps, tokens = saved["logps"].astype(np.float64), str(saved["tokens"])
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): put a copy of it back") from None
    pairs = len(ExampleSet(directory, state.tokens, 2))
    if tokens != state.tokens.sha256 or logps.shape != (pairs, 2) or not np.isfinite(logps).all():
        raise ValueError(f"{path} is not of the pairs that the run began with: put that one back")
    return logps
