"""GRPO as a task: several completions of a prompt, measured by each other (objectives/grpo.py)."""

from __future__ import annotations

import numpy as np

from numgpt.objectives import group_advantages, grpo
from numgpt.objectives.functions import Metrics
from numgpt.training.rollout_config import GRPOConfig
from numgpt.training.rollouts import COMPLETIONS, TOKENS, RolledBatch, Rollouts
from numgpt.training.step import Sums


class Groups(Rollouts):
    """Prompts, each with a group of completions."""

    config: GRPOConfig
    entropy = "entropy"
    means = Rollouts.means | dict.fromkeys(
        ("kl", entropy, "clip_ratio/low_mean", "clip_ratio/high_mean"), TOKENS
    )

    def prepared(self, batches: list[RolledBatch]) -> list[RolledBatch]:
        config = self.config
        if config.beta:
            self.refer(batches)
        rewards = np.concatenate([self._paid(batch) for batch in batches])
        advantages = group_advantages(rewards, config.group_size, config.scale_rewards)
        edges = np.cumsum([len(batch.ids) for batch in batches])[:-1]
        for batch, part in zip(batches, np.split(advantages, edges), strict=True):
            batch.advantages = part.astype(np.float32)
        return batches

    def _paid(self, batch: RolledBatch) -> np.ndarray:
        """The rewards, less what leaving the reference has cost, where that is told in them."""
        if self.config.kl != "reward" or batch.ref_logps is None:
            return batch.rewards
        gone = (batch.old_logps - batch.ref_logps).sum(axis=1, where=batch.mask, dtype=np.float64)
        return batch.rewards - self.config.beta * gone

    def objective(
        self, batch: RolledBatch, totals: Sums, logps: np.ndarray
    ) -> tuple[float, tuple[np.ndarray], Metrics]:
        config = self.config
        loss, dlogps, metrics = grpo(
            logps,
            batch.old_logps.astype(logps.dtype),
            batch.advantages,
            batch.mask,
            batch.ref_logps,
            beta=0.0 if config.kl == "reward" else config.beta,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            loss_type=config.loss_type,
            count=totals[TOKENS if config.loss_type in ("dapo", "bnpo") else COMPLETIONS],
            level=config.level,
            corrected_kl=config.kl == "corrected",
            max_length=config.max_completion_length,
            tokens=totals[TOKENS],
        )
        return loss, (dlogps,), metrics
