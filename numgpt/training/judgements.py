"""KTO: completions that were judged one by one (objectives/kto.py), against what the policy makes
of completions in general, after prompts that are not their own (data/judgements.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numgpt.data.batch import Batch
from numgpt.data.judgements import JudgedEncoder
from numgpt.models import LanguageModel
from numgpt.objectives import kto
from numgpt.training.preferences import Derived, Referenced
from numgpt.training.step import Sums
from numgpt.training.tune_config import KTOConfig

KL = "kl"  # among the sums


class Judgements(Referenced):
    """Completions, each beside one that does not belong to its prompt."""

    config: KTOConfig
    encoder = JudgedEncoder
    unit = "judged completion"
    counted = "completions"

    def learnt(self, batch: Batch) -> tuple[Any, ...]:
        half = len(batch.ids) // 2
        return batch.ids[:half], batch.targets[:half]

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        """How many completions there are, and Σ s of the mismatched ones: their mean is z."""
        assert self.reference is not None
        totals = super().totals(model, batches) | {KL: 0.0}
        for batch in batches:
            half = len(batch.ids) // 2
            logps = model.log_probs(batch.ids[half:], batch.targets[half:]).sum(axis=1, dtype=float)
            totals[KL] += float((logps - self.reference[batch.numbers, 1]).sum())
        return totals

    def objective(self, batch: Batch, outputs: np.ndarray, totals: Sums) -> Derived:
        config, count = self.config, totals[self.counted]
        assert self.reference is not None
        good = [self.examples.example(int(number)).desirable for number in batch.numbers]
        z = max(0.0, totals[KL] / count)
        loss, dlogps, metrics = kto(
            outputs.sum(axis=1),
            self.reference[batch.numbers, 0].astype(outputs.dtype),
            np.array(good),
            z,
            config.beta,
            config.desirable_weight,
            config.undesirable_weight,
            count,
        )
        metrics[KL] = z * len(good) / count
        return loss, dlogps[:, None] * np.ones_like(outputs), metrics

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Means over the good completions, or over the bad ones."""
        counts = {"chosen": sums["chosen"], "rejected": sums[self.counted] - sums["chosen"]}
        means = {
            name: sums[name] / counts[name.partition("/")[2]]
            for name in sums
            if "/" in name and counts[name.partition("/")[2]]
        }
        if all(counts.values()):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means | {KL: sums[KL] / sums[self.counted]}
