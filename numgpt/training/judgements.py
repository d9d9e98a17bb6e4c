"""KTO: completions that were judged one by one (objectives/kto.py), against what the policy makes
of completions in general, after prompts that are not their own (data/judgements.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numgpt.data.batch import Batch
from numgpt.data.judgements import JudgedEncoder
from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.objectives import kto
from numgpt.training.preferences import Referenced
from numgpt.training.step import Sums
from numgpt.training.tune_config import KTOConfig

COMPLETIONS, KL = "completions", "kl"  # names among the sums


class Judgements(Referenced):
    """Completions, each beside one that does not belong to its prompt."""

    config: KTOConfig
    encoder = JudgedEncoder
    unit = "judged completion"

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        """How many completions there are, and Σ s of the mismatched ones: their mean is z."""
        count = sum(len(batch.ids) // 2 for batch in batches)
        gained = sum(self._gained_of_mismatched(model, batch) for batch in batches)
        return {COMPLETIONS: count, KL: gained}

    def _gained_of_mismatched(self, model: LanguageModel, batch: Batch) -> float:
        assert self.reference is not None
        half = len(batch.ids) // 2
        logps = model.log_probs(batch.ids[half:], batch.targets[half:]).sum(axis=1, dtype=float)
        return float((logps - self.reference[batch.numbers, 1]).sum())

    def gradients(
        self, model: LanguageModel, batch: Batch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        count, half = totals[COMPLETIONS], len(batch.ids) // 2

        def objective(logp: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
            loss, dlogps, metrics = self._kto(batch, logp.sum(axis=1), totals)
            return loss, dlogps[:, None] * np.ones_like(logp), metrics

        rng = self.state.rng if self.config.has_dropout else None
        loss, gradients, metrics = model.value_and_grads(
            batch.ids[:half], batch.targets[:half], objective, rng, add_to=add_to
        )
        sums = {name: value * count for name, value in metrics.items()}
        sums |= {COMPLETIONS: half, KL: half * self._z(totals)}
        return {"loss": loss, "tokens": batch.tokens} | sums, gradients

    def _z(self, totals: Sums) -> float:
        return max(0.0, totals[KL] / totals[COMPLETIONS])

    def _kto(self, batch: Batch, logps: np.ndarray, totals: Sums) -> Any:
        """What kto says of a batch, from the log-probabilities (B,) of its completions."""
        config = self.config
        assert self.reference is not None
        if not np.isfinite(logps).all() or not np.isfinite(totals[KL]):
            return np.nan, np.zeros_like(logps), {}  # which the loop tells
        good = [self.examples.example(int(number)).desirable for number in batch.numbers]
        return kto(
            logps,
            self.reference[batch.numbers, 0].astype(logps.dtype),
            np.array(good),
            self._z(totals),
            config.beta,
            config.desirable_weight,
            config.undesirable_weight,
            totals[COMPLETIONS],
        )

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Means over the good completions, or over the bad ones."""
        counts = {"chosen": sums["chosen"], "rejected": sums[COMPLETIONS] - sums["chosen"]}
        means = {
            name: sums[name] / counts[name.partition("/")[2]]
            for name in sums
            if "/" in name and counts[name.partition("/")[2]]
        }
        if all(counts.values()):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means | {KL: sums[KL] / sums[COMPLETIONS]}

    def held_out_loss(self, model: LanguageModel) -> float:
        batches = list(self.held_out())
        totals, loss = self.totals(model, batches), 0.0
        for batch in batches:
            half = len(batch.ids) // 2
            logps = model.log_probs(batch.ids[:half], batch.targets[:half]).sum(axis=1)
            loss += self._kto(batch, logps, totals)[0]
        return loss
