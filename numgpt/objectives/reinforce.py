"""REINFORCE: what was rewarded becomes likelier (Williams 1992), and RLOO, where each completion is
measured by the others of its prompt (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

The mean reward J = Σ_y π(y) r(y) of what a policy writes has the gradient

    ∇J = Σ_y r(y) ∇π(y) = Σ_y π(y) r(y) ∇log π(y) = E_π[r ∇log π]

as ∇π = π ∇log π: a mean over samples of π. So with A = r - b (grpo.py says why a baseline b may be
subtracted), of B completions

    loss = -Σ_i A_i log π(y_i) / B            dloss/dlog π(y_it) = -A_i / B

RLOO's baseline is the mean reward of the group's other completions, b_i = Σ_{j≠i} r_j / (G - 1),
which does not depend on y_i. Against the group's mean, A_i = G/(G-1) (r_i - mean): GRPO's without
the division. Where a rollout is used for several steps, the ratio of a whole completion is clipped.
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import Metrics, masked, of_completions, positive
from numgpt.objectives.grpo import clipped, group_advantages


def leave_one_out(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Rewards (B,), the completions of a prompt one after another -> advantages (B,).  NaN as in
    `group_advantages`.

    >>> leave_one_out(np.array([1.0, 0.0, 2.0]), 3)
    array([ 0. , -1.5,  1.5])
    """
    apart = group_advantages(rewards, group_size, scale="none")
    n = (~np.isnan(rewards)).reshape(-1, group_size).sum(axis=1).repeat(group_size)
    return np.where(n > 1, apart * n / np.maximum(1, n - 1), 0)


def reinforce(
    logps: np.ndarray, advantages: np.ndarray, mask: np.ndarray, count: float | None = None
) -> tuple[float, np.ndarray, Metrics]:
    """Log-probabilities of the completions' tokens (B, T), advantages (B,), mask (B, T) -> loss,
    dlogps (B, T), metrics.  count: completions of the whole step.

    >>> loss, dlogps, _ = reinforce(np.array([[-1.0, -2.0]]), np.array([0.5]), np.array([[1, 1]]))
    >>> loss, dlogps.tolist()
    (1.5, [[-0.5, -0.5]])
    """
    m, logps = masked(mask, logps=logps)
    of_completions(advantages, mask)
    share = 1 / (max(1, len(m)) if count is None else count)
    weights = -advantages[:, None].astype(logps.dtype) * m * share
    return float((weights * logps).sum()), weights, {}


def rloo(
    logps: np.ndarray,
    old_logps: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    epsilon: float = 0.2,
    count: float | None = None,
) -> tuple[float, np.ndarray, Metrics]:
    """As `reinforce`, with the ratio of whole completions clipped: -min(ρA, clip(ρ, 1-ε, 1+ε) A),
    ρ = π(y)/π_old(y).  The derivative by each token's log-probability is that by log ρ.

    >>> logps = np.log(np.array([[0.5, 0.5]]))
    >>> rloo(logps, logps, np.array([2.0]), np.ones((1, 2)))[:2]
    (-2.0, array([[-2., -2.]]))
    """
    positive(epsilon=epsilon)
    m, logps, old_logps = masked(mask, logps=logps, old_logps=old_logps)
    of_completions(advantages, mask)
    share = 1 / (max(1, len(m)) if count is None else count)
    log_ratio, a = (logps - old_logps).sum(axis=1), advantages.astype(logps.dtype)
    losses, d = clipped(log_ratio, a, epsilon, epsilon)
    ratio = np.exp(log_ratio)
    metrics = {
        "clip_ratio/low_mean": float((((ratio < 1 - epsilon) & (a < 0)) * share).sum()),
        "clip_ratio/high_mean": float((((ratio > 1 + epsilon) & (a > 0)) * share).sum()),
    }
    return float(losses.sum() * share), d[:, None] * m * share, metrics
