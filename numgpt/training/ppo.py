"""PPO as a task: a policy, and a value head on the same hidden states that predicts its rewards
(objectives/ppo.py).

The head belongs to the run: it is in the checkpoint, and what is kept for use is the policy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numgpt.models import LanguageModel
from numgpt.models.parameters import Gradients
from numgpt.objectives import gae, ppo, token_rewards, value, whitened
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.rollout_config import PPOConfig
from numgpt.training.rollouts import TOKENS, RolledBatch, Rollouts
from numgpt.training.step import Sums
from numgpt.training.tune_config import TuningConfig


class ActorCritic(Rollouts):
    """Prompts, each with a completion, whose tokens have values."""

    config: PPOConfig
    keeps_head = False
    of_completions = frozenset(("objective/kl", "objective/rlhf_reward"))
    of_tokens = frozenset(("objective/entropy", "policy/clipfrac_avg", "policy/approxkl_avg"))
    of_tokens |= {"val/clipfrac_avg", "loss/policy_avg", "loss/value_avg"}

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Give it a value head, which at first predicts nothing."""
        super().fit_model(model, tokenizer, config)
        model.add_score_head(np.zeros((1, model.config.width)))

    def prepared(self, batches: list[RolledBatch]) -> list[RolledBatch]:
        config, model = self.config, self.state.model
        with self.the_reference() as reference:
            for batch in batches:
                batch.ref_logps = reference.log_probs(batch.ids, batch.targets, config.temperature)
        for batch in batches:
            batch.old_values = model.values(batch.ids)
            batch.advantages, batch.returns = self._of_tokens(batch)
        parts = [(b.advantages.astype(np.float64), b.mask) for b in batches]  # type: ignore
        sums = (
            float(sum(mask.sum() for _, mask in parts)),
            sum(float((a * mask).sum()) for a, mask in parts),
            sum(float((a**2 * mask).sum()) for a, mask in parts),
        )
        for batch in batches:
            assert batch.advantages is not None
            batch.advantages = whitened(batch.advantages, batch.mask, sums)
        return batches

    def _of_tokens(self, batch: RolledBatch) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and returns (n, T); what leaving the reference cost is told."""
        config, mask = self.config, batch.mask
        assert batch.ref_logps is not None
        assert batch.old_values is not None
        scores = np.nan_to_num(batch.rewards)
        by_token = token_rewards(scores, batch.old_logps, batch.ref_logps, mask, config.kl_coef)
        gone = float(((batch.old_logps - batch.ref_logps) * mask).sum())
        batch.told |= {"objective/kl": gone, "objective/rlhf_reward": float(by_token.sum())}
        by_token = by_token.astype(batch.old_values.dtype)
        return gae(by_token, batch.old_values, mask, config.gamma, config.lam)

    def totals(self, model: LanguageModel, batches: Sequence[RolledBatch]) -> Sums:
        return {TOKENS: max(1, sum(int(batch.mask.sum()) for batch in batches))}

    def gradients(
        self, model: LanguageModel, batch: RolledBatch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        config, tokens, mask = self.config, totals[TOKENS], batch.mask
        advantages, old_values, returns = batch.advantages, batch.old_values, batch.returns
        assert advantages is not None
        assert old_values is not None
        assert returns is not None
        share = mask / tokens

        def objective(
            logps: np.ndarray, entropies: np.ndarray, values: np.ndarray
        ) -> tuple[float, tuple[np.ndarray, ...], dict[str, float]]:
            if not np.isfinite(logps).all() or not np.isfinite(values[mask]).all():
                return np.nan, (np.zeros_like(logps),) * 3, {}  # which the loop tells
            of_policy, dlogps, acted = ppo(
                logps, batch.old_logps, advantages, mask, config.epsilon, tokens
            )
            of_value, dvalues, judged = value(
                values, old_values, returns, mask, config.cliprange_value, tokens
            )
            entropy = float((share * entropies).sum())
            told = {
                "objective/entropy": entropy,
                "policy/clipfrac_avg": acted["clipfrac"],
                "policy/approxkl_avg": acted["approxkl"],
                "val/clipfrac_avg": judged["clipfrac_value"],
                "loss/policy_avg": of_policy,
                "loss/value_avg": of_value,
            }
            loss = of_policy + config.vf_coef * of_value - config.entropy_coef * entropy
            return loss, (dlogps, -config.entropy_coef * share, config.vf_coef * dvalues), told

        loss, gradients, metrics = model.value_and_grads(
            batch.ids,
            batch.targets,
            objective,
            self.state.rng if config.has_dropout else None,
            temperature=config.temperature,
            entropy=True,
            values=True,
            add_to=add_to,
        )
        sums = {name: told * tokens for name, told in metrics.items()}
        sums |= {"loss": loss, "tokens": batch.tokens, TOKENS: int(mask.sum())}
        return sums | batch.told, gradients
