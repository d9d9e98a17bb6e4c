"""PPO as a task: a policy, and a value head on the same hidden states that predicts its rewards
(objectives/ppo.py).

The head belongs to the run: it is in the checkpoint, and what is kept for use is the policy alone.
"""

from __future__ import annotations

import numpy as np

from numgpt.models import LanguageModel
from numgpt.objectives import gae, ppo, token_rewards, value, whitened
from numgpt.objectives.functions import Metrics
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.rollout_config import PPOConfig
from numgpt.training.rollouts import COMPLETIONS, TOKENS, RolledBatch, Rollouts
from numgpt.training.step import Sums
from numgpt.training.tune_config import TuningConfig


class ActorCritic(Rollouts):
    """Prompts, each with a completion, whose tokens have values."""

    config: PPOConfig
    keeps_head = False
    has_values = True
    entropy = "objective/entropy"
    means = Rollouts.means | dict.fromkeys(("objective/kl", "objective/rlhf_reward"), COMPLETIONS)
    means |= dict.fromkeys((entropy, "policy/clipfrac_avg", "policy/approxkl_avg"), TOKENS)
    means |= dict.fromkeys(("val/clipfrac_avg", "loss/policy_avg", "loss/value_avg"), TOKENS)

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Give it a value head, which at first predicts nothing."""
        super().fit_model(model, tokenizer, config)
        model.add_score_head(np.zeros((1, model.config.width)))

    def prepared(self, batches: list[RolledBatch]) -> list[RolledBatch]:
        self.refer(batches)
        for batch in batches:
            batch.old_values = self.state.model.values(batch.ids)
            batch.advantages, batch.returns = self._of_tokens(batch)
        counted = np.concatenate([batch.advantages[batch.mask] for batch in batches], dtype=float)
        sums = float(len(counted)), float(counted.sum()), float((counted**2).sum())
        for batch in batches:
            batch.advantages = whitened(batch.advantages, batch.mask, sums)
        return batches

    def _of_tokens(self, batch: RolledBatch) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and returns (n, T); what leaving the reference cost is told."""
        config, mask = self.config, batch.mask
        assert batch.ref_logps is not None
        scores = np.nan_to_num(batch.rewards)
        by_token = token_rewards(scores, batch.old_logps, batch.ref_logps, mask, config.kl_coef)
        gone = float(((batch.old_logps - batch.ref_logps) * mask).sum())
        batch.told |= {"objective/kl": gone, "objective/rlhf_reward": float(by_token.sum())}
        by_token = by_token.astype(batch.old_values.dtype)
        return gae(by_token, batch.old_values, mask, config.gamma, config.lam)

    def objective(
        self, batch: RolledBatch, totals: Sums, logps: np.ndarray, values: np.ndarray
    ) -> tuple[float, tuple[np.ndarray, np.ndarray], Metrics]:
        config, mask, tokens = self.config, batch.mask, totals[TOKENS]
        of_policy, dlogps, acted = ppo(
            logps, batch.old_logps, batch.advantages, mask, config.epsilon, tokens
        )
        of_value, dvalues, judged = value(
            values, batch.old_values, batch.returns, mask, config.cliprange_value, tokens
        )
        told = {
            "policy/clipfrac_avg": acted["clipfrac"],
            "policy/approxkl_avg": acted["approxkl"],
            "val/clipfrac_avg": judged["clipfrac_value"],
            "loss/policy_avg": of_policy,
            "loss/value_avg": of_value,
        }
        return of_policy + config.vf_coef * of_value, (dlogps, config.vf_coef * dvalues), told
