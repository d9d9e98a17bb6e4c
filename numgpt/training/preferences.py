"""Direct preference optimisation: pairs of completions, one of them chosen (objectives/dpo.py).

The reference is the model that the run began as. Its log-probability of each completion is computed
once, before the first step, and kept in the run's directory: there is no second model in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.checkpoint import RunState
from numgpt.training.records import Callback, Note
from numgpt.training.step import Sums
from numgpt.training.tune_config import DPOConfig, ReferenceConfig
from numgpt.training.tuning import Tuning

PAIRS = "pairs"  # the name of their number among the sums


class Referenced(Tuning):
    """Groups of two completions, whose log-probabilities by the reference are known."""

    group = 2

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        super().__init__(state, out, tokenizer)
        self.reference = read_reference(out, state) if _has_reference(state) else None

    @classmethod
    def stage(
        cls, state: RunState, staged: Path, report: Callback, encoder: ExampleEncoder
    ) -> None:
        if _has_reference(state):
            report(Note("computing what the reference makes of each completion"))
            write_reference(staged, state)

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
    """Pairs, chosen and rejected, of nearly equal length."""

    config: DPOConfig
    encoder = PairEncoder
    unit = "preference"

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        return {PAIRS: sum(len(batch.ids) // 2 for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: Batch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        def objective(logp: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
            loss, derivatives, metrics = self._dpo(batch, logp, totals[PAIRS])
            return loss, np.concatenate(derivatives)[:, None] * np.ones_like(logp), metrics

        rng = self.state.rng if self.config.has_dropout else None
        loss, gradients, metrics = model.value_and_grads(
            batch.ids, batch.targets, objective, rng, add_to=add_to
        )
        sums = {name: value * totals[PAIRS] for name, value in metrics.items()}
        return {"loss": loss, "tokens": batch.tokens, PAIRS: len(batch.ids) // 2} | sums, gradients

    def _dpo(self, batch: Batch, logp: np.ndarray, count: float) -> Any:
        """What dpo says of a batch, from the log-probabilities (2B, T) of its tokens."""
        config, half = self.config, len(logp) // 2
        if not np.isfinite(logp).all():
            return np.nan, np.zeros((2, half)), {}  # which the loop tells
        chosen, rejected = np.split(logp.sum(axis=1), [half])
        lengths = np.count_nonzero(batch.targets != IGNORED, axis=1)
        references = (None, None)
        if self.reference is not None:
            references = tuple(self.reference[batch.numbers].T.astype(logp.dtype))
        return dpo(
            chosen,
            rejected,
            *references,
            config.beta,
            config.loss_type,
            config.label_smoothing,
            config.gamma,
            (lengths[:half], lengths[half:]),
            count,
        )

    def metrics(self, sums: Sums) -> dict[str, float]:
        return {name: value / sums[PAIRS] for name, value in sums.items() if "/" in name}

    def held_out_loss(self, model: LanguageModel) -> float:
        count, loss = len(self.examples.val), 0.0
        for batch in self.held_out():
            loss += self._dpo(batch, model.log_probs(batch.ids, batch.targets), count)[0]
        return loss


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
