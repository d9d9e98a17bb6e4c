"""GRPO as a task: several completions of a prompt, measured by each other (objectives/grpo.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.objectives import group_advantages, grpo
from numgpt.training.rollout_config import GRPOConfig
from numgpt.training.rollouts import COMPLETIONS, TOKENS, RolledBatch, Rollouts
from numgpt.training.step import Sums


class Groups(Rollouts):
    """Prompts, each with a group of completions."""

    config: GRPOConfig
    of_tokens = frozenset(("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"))

    def prepared(self, batches: list[RolledBatch]) -> list[RolledBatch]:
        config = self.config
        if config.beta:
            with self.the_reference() as reference:
                for batch in batches:
                    batch.ref_logps = reference.log_probs(
                        batch.ids, batch.targets, config.temperature
                    )
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

    def totals(self, model: LanguageModel, batches: Sequence[RolledBatch]) -> Sums:
        counted = sum(int(batch.mask.sum()) for batch in batches)
        return {TOKENS: max(1, counted), COMPLETIONS: sum(len(batch.ids) for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: RolledBatch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        config, tokens, mask = self.config, totals[TOKENS], batch.mask
        assert batch.advantages is not None
        advantages, share = batch.advantages, mask / tokens

        def objective(
            logps: np.ndarray, entropies: np.ndarray
        ) -> tuple[float, tuple[np.ndarray, np.ndarray], dict[str, float]]:
            if not np.isfinite(logps).all():
                return np.nan, (np.zeros_like(logps), np.zeros_like(logps)), {}  # the loop tells
            loss, dlogps, metrics = grpo(
                logps,
                batch.old_logps.astype(logps.dtype),
                advantages,
                mask,
                batch.ref_logps,
                0.0 if config.kl == "reward" else config.beta,
                config.epsilon,
                config.epsilon_high,
                config.loss_type,
                tokens if config.loss_type in ("dapo", "bnpo") else totals[COMPLETIONS],
                config.level,
                config.kl == "corrected",
                config.max_completion_length,
                tokens,
            )
            entropy = float((share * entropies).sum())
            loss -= config.entropy_coef * entropy
            return loss, (dlogps, -config.entropy_coef * share), metrics | {"entropy": entropy}

        rng = self.state.rng if config.has_dropout else None
        loss, gradients, metrics = model.value_and_grads(
            batch.ids,
            batch.targets,
            objective,
            rng,
            temperature=config.temperature,
            entropy=True,
            add_to=add_to,
        )
        sums = {name: value * tokens for name, value in metrics.items()}
        sums |= {"loss": loss, "tokens": batch.tokens, TOKENS: int(mask.sum())}
        return sums | batch.told, gradients
