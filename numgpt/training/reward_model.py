"""A reward model as a task: of two completions, the chosen one is to score higher
(objectives/reward.py).

It is the language model with a score head in place of its unembedding; what a text is worth is the
score at its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numgpt.data.batch import Batch
from numgpt.data.preferences import PairEncoder
from numgpt.models import LanguageModel
from numgpt.models.modules import SCORE
from numgpt.models.parameters import Gradients
from numgpt.objectives import reward
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.step import Sums
from numgpt.training.tune_config import RewardConfig, TuningConfig
from numgpt.training.tuning import Tuning

PAIRS = "pairs"  # the name of their number among the sums


class RewardModel(Tuning):
    """Pairs, chosen and rejected, of nearly equal length."""

    config: RewardConfig
    encoder = PairEncoder
    group = 2
    unit = "preference"

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Give it a head; a new one's scores are near 0."""
        head = model.head_parameters  # which an adapter has frozen
        model.add_score_head(None if head is None else head[SCORE].copy(), config.seed)
        if model.config.pad_token_id is None and model.adapter is None:  # transformers wants one
            model.config.pad_token_id = tokenizer.eos_token_id

    def totals(self, model: LanguageModel, batches: Sequence[Batch]) -> Sums:
        return {PAIRS: sum(len(batch.numbers) for batch in batches)}

    def gradients(
        self, model: LanguageModel, batch: Batch, totals: Sums, add_to: Gradients | None
    ) -> tuple[Sums, Gradients]:
        def objective(scores: np.ndarray) -> tuple[float, np.ndarray, dict[str, float]]:
            loss, derivatives, metrics = self._reward(scores, totals[PAIRS])
            return loss, np.concatenate(derivatives), metrics

        rng, texts = self.state.rng if self.config.has_dropout else None, self._texts(batch)
        loss, gradients, metrics = model.scores_and_grads(texts, objective, rng, add_to=add_to)
        sums = {name: value * totals[PAIRS] for name, value in metrics.items()}
        sums |= {"loss": loss, "tokens": sum(map(len, texts)), PAIRS: len(batch.numbers)}
        return sums, gradients

    def _texts(self, batch: Batch) -> list[np.ndarray]:
        """Prompts with their completions to the last token, which no batch reads; first the chosen
        ones."""
        numbers = batch.numbers.tolist()
        return [self.examples.example(n, place).ids for place in (0, 1) for n in numbers]

    def _reward(self, scores: np.ndarray, count: float) -> Any:
        """What reward says of the scores (2B,) of pairs, first the chosen ones."""
        chosen, rejected = np.split(scores, 2)
        if not np.isfinite(scores).all():
            return np.nan, np.zeros((2, len(chosen))), {}  # which the loop tells
        center = self.config.center_coefficient
        return reward(chosen, rejected, center_coefficient=center, count=count)

    def metrics(self, sums: Sums) -> dict[str, float]:
        own = sums.keys() - {"loss", "tokens", PAIRS}
        return {name: sums[name] / sums[PAIRS] for name in sorted(own)}

    def held_out_loss(self, model: LanguageModel) -> float:
        loss = 0.0
        for batch in self.held_out():
            loss += self._reward(model.scores(self._texts(batch)), len(self.examples.val))[0]
        return loss

    def sample(self) -> tuple[str, str]:
        """A prompt, and its two completions with their scores."""
        number = self.shown_number()
        pair = [self.examples.example(number, place) for place in (0, 1)]
        said = [self.tokenizer.decode(e.ids[e.loss_mask], skip_special_tokens=True) for e in pair]
        scores = self.state.model.scores([example.ids for example in pair])
        prompt = self.tokenizer.decode(pair[0].ids[~pair[0].loss_mask], skip_special_tokens=True)
        kinds = zip(PairEncoder.learnt, scores, said, strict=True)
        return prompt[-200:], "\n".join(f"[{kind}: {score:.3f}] {s}" for kind, score, s in kinds)
