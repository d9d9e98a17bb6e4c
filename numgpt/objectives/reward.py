"""A reward model's loss: of two completions, the chosen one gets the higher score (Bradley & Terry
1952; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022, arXiv:2203.02155).

    P(y⁺ beats y⁻) = σ(r⁺ - r⁻)        loss = -log σ(r⁺ - r⁻ - m) + c (r⁺ + r⁻)²

m is a margin that the difference should have where raters were sure (Touvron et al. 2023,
arXiv:2307.09288). The first term knows only differences, so scores may drift by any constant; the
second keeps them around 0 (Eisenstein et al. 2023, arXiv:2312.09244, c = 0.01).

    dloss/dr⁺ = -σ(m - (r⁺ - r⁻)) + 2c (r⁺ + r⁻)      dloss/dr⁻ = σ(m - (r⁺ - r⁻)) + 2c (r⁺ + r⁻)
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import Metrics, log_sigmoid, same_shapes, sigmoid


def reward(
    chosen_scores: np.ndarray,
    rejected_scores: np.ndarray,
    margin: np.ndarray | None = None,
    center_coefficient: float = 0.0,
    count: float | None = None,
) -> tuple[float, tuple[np.ndarray, np.ndarray], Metrics]:
    """Scores (B,) each, margins (B,) or none -> loss, (dchosen, drejected), metrics.

    >>> chosen, rejected = np.array([2.0, -1.0]), np.array([0.5, 1.0])
    >>> loss, (dchosen, drejected), metrics = reward(chosen, rejected)
    >>> p = 1 / (1 + np.exp(rejected - chosen))
    >>> np.isclose(loss, -np.log(p).mean()), np.allclose(dchosen, -(1 - p) / 2)
    (np.True_, True)
    >>> metrics["accuracy"], metrics["margin"]
    (0.5, -0.25)
    """
    same_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores, margin=margin)
    difference, both = chosen_scores - rejected_scores, chosen_scores + rejected_scores
    logit = difference if margin is None else difference - margin
    share = 1 / (max(1, len(logit)) if count is None else count)
    losses = -log_sigmoid(logit) + center_coefficient * both**2
    apart, centre = sigmoid(-logit), 2 * center_coefficient * both
    parts = {"accuracy": difference > 0, "margin": difference, "mean_reward": both / 2}
    metrics = {name: float(values.sum() * share) for name, values in parts.items()}
    derivatives = (centre - apart) * share, (centre + apart) * share
    return float(losses.sum() * share), derivatives, metrics
