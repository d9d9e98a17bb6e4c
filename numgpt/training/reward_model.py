"""A reward model as a task: of two completions, the chosen one is to score higher
(objectives/reward.py).

It is the language model with a score head in place of its unembedding; what a text is worth is the
score at its last token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numgpt.data.batch import Batch
from numgpt.data.preferences import PairEncoder
from numgpt.models import LanguageModel
from numgpt.models.modules import SCORE
from numgpt.objectives import reward
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.preferences import Compared, Derived
from numgpt.training.step import Sums
from numgpt.training.tune_config import RewardConfig, TuningConfig


class RewardModel(Compared):
    """Pairs, and the scores (2B,) of their texts, those of the chosen ones first."""

    config: RewardConfig
    outputs = staticmethod(LanguageModel.scores)
    outputs_and_grads = staticmethod(LanguageModel.scores_and_grads)

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Give it a head; a new one's scores are near 0."""
        head = model.head_parameters  # which an adapter has frozen
        model.add_score_head(None if head is None else head[SCORE].copy(), config.seed)
        if model.config.pad_token_id is None and model.adapter is None:  # transformers wants one
            model.config.pad_token_id = tokenizer.eos_token_id

    def learnt(self, batch: Batch) -> tuple[Any, ...]:
        """Prompts with their completions to the last token, which no batch reads."""
        numbers = batch.numbers.tolist()
        return ([self.examples.example(n, place).ids for place in (0, 1) for n in numbers],)

    def objective(self, batch: Batch, outputs: np.ndarray, totals: Sums) -> Derived:
        center, count = self.config.center_coefficient, totals[self.counted]
        chosen, rejected = np.split(outputs, 2)
        loss, derivatives, metrics = reward(chosen, rejected, None, center, count)
        return loss, np.concatenate(derivatives), metrics

    def sample(self) -> tuple[str, str]:
        """A prompt, and its two completions with their scores."""
        number = self.shown_number()
        pair = [self.examples.example(number, place) for place in (0, 1)]
        said = [self.tokenizer.decode(e.ids[e.loss_mask], skip_special_tokens=True) for e in pair]
        scores = self.state.model.scores([example.ids for example in pair])
        prompt = self.tokenizer.decode(pair[0].ids[~pair[0].loss_mask], skip_special_tokens=True)
        kinds = zip(PairEncoder.learnt, scores, said, strict=True)
        return prompt[-200:], "\n".join(f"[{kind}: {score:.3f}] {s}" for kind, score, s in kinds)
