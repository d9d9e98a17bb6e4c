"""PPO: a policy and a value model that predicts its rewards (Schulman et al. 2017,
arXiv:1707.06347), as it trained InstructGPT (Ouyang et al. 2022, arXiv:2203.02155).

A token is an action. Its reward is what it cost to leave the reference, and at the last token of
the completion also the score of a reward model:

    r_t = -κ (log π(y_t) - log π_ref(y_t))  [+ score at the end]

The value V_t is what is still to come, as predicted before y_t. What came better than predicted is
the advantage (Schulman et al. 2015, arXiv:1506.02438):

    δ_t = r_t + γ V_{t+1} - V_t             with V = 0 after the end
    A_t = δ_t + γλ A_{t+1}                  so A_t = Σ_k (γλ)ᵏ δ_{t+k}
    R_t = A_t + V_t                         what V_t should have been

λ = 0 trusts the next prediction alone; λ = 1 the rewards alone, R_t = Σ_k γᵏ r_{t+k}.

    policy    Σ_t -min(ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t) / tokens         as in grpo.py
    value     Σ_t ½ max((V - R)², (clip(V, V_old ± c) - R)²) / tokens     derivative V - R, and none
              where the clipped error is the larger, as V has gone far enough from V_old
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import Metrics, masked, positive
from numgpt.objectives.grpo import clipped

SMALLEST_VARIANCE = 1e-8


def token_rewards(
    scores: np.ndarray,
    logps: np.ndarray,
    ref_logps: np.ndarray,
    mask: np.ndarray,
    kl_coefficient: float = 0.05,
) -> np.ndarray:
    """Scores (B,) of completions, and their tokens' log-probabilities (B, T) -> rewards (B, T).

    >>> logps, ref = np.array([[-1.0, -2.0, 0.0]]), np.array([[-1.5, -2.0, 0.0]])
    >>> token_rewards(np.array([3.0]), logps, ref, np.array([[1, 1, 0]]), 0.1).tolist()
    [[-0.05, 3.0, 0.0]]
    """
    m, logps, ref_logps = masked(mask, logps=logps, ref_logps=ref_logps)
    rewards = kl_coefficient * (ref_logps - logps)
    last = m.shape[1] - 1 - np.argmax(m[:, ::-1], axis=1)
    rewards[np.arange(len(m)), last] += np.where(m.any(axis=1), scores, 0)
    return rewards


def gae(
    rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float = 1.0, lam: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and values of the completions' tokens (B, T) -> advantages and returns (B, T), 0
    where nothing counts, which is passed over.

    >>> rewards, values = np.array([[0.0, 1.0]]), np.array([[0.5, 0.25]])
    >>> advantages, returns = gae(rewards, values, np.ones((1, 2)), gamma=1.0, lam=0.5)
    >>> advantages.tolist()  # δ = 0 + 0.25 - 0.5, 1 - 0.25
    [[0.125, 0.75]]
    >>> returns.tolist()
    [[0.625, 1.0]]
    """
    m, rewards, values = masked(mask, rewards=rewards, values=values)
    advantages = np.zeros_like(values)
    later, following = np.zeros((2, len(values)), values.dtype)  # A and V of the next that counts
    for t in reversed(range(values.shape[1])):
        counts = m[:, t] > 0
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantages[:, t] = np.where(counts, delta + gamma * lam * later, 0)
        later = np.where(counts, advantages[:, t], later)
        following = np.where(counts, values[:, t], following)
    return advantages, advantages + values


def whitened(
    advantages: np.ndarray, mask: np.ndarray, sums: tuple[float, float, float] | None = None
) -> np.ndarray:
    """Advantages (B, T) with mean 0 and variance 1 over what counts.  sums: those of the whole
    step, where this is a part of it: tokens, Σ A, Σ A².

    >>> whitened(np.array([[1.0, 3.0, 9.0]]), np.array([[1, 1, 0]])).round(4).tolist()
    [[-0.7071, 0.7071, 0.0]]
    """
    m, a = masked(mask, advantages=advantages)
    a = a.astype(np.float64)
    n, total, squares = sums or (m.sum(), a.sum(), (a**2).sum())
    mean = total / max(1, n)
    variance = max(0.0, squares - n * mean**2) / max(1, n - 1)
    scaled = (a - mean) / np.sqrt(variance + SMALLEST_VARIANCE)
    return np.where(m > 0, scaled, 0).astype(advantages.dtype)


def ppo(
    logps: np.ndarray,
    old_logps: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    epsilon: float = 0.2,
    count: float | None = None,
) -> tuple[float, np.ndarray, Metrics]:
    """Log-probabilities of the completions' tokens, advantages, mask, (B, T) each -> loss, dlogps
    (B, T), metrics.  count: tokens of the whole step.

    >>> logps = np.log(np.array([[0.6, 0.1]]))
    >>> loss, dlogps, metrics = ppo(
    ...     logps, np.log(np.array([[0.4, 0.1]])), np.array([[1.0, -2.0]]), np.ones((1, 2))
    ... )
    >>> round(loss, 6), dlogps.tolist(), metrics["clipfrac"]
    (0.4, [[0.0, 1.0]], 0.5)
    """
    positive(epsilon=epsilon)
    m, logps, old_logps, a = masked(mask, logps=logps, old_logps=old_logps, advantages=advantages)
    weights = m / (max(1, m.sum()) if count is None else count)
    log_ratio = logps - old_logps
    losses, d = clipped(log_ratio, a, epsilon, epsilon)
    metrics = {
        "clipfrac": float((weights * ((d == 0) & (a != 0))).sum()),
        "approxkl": float((weights * 0.5 * log_ratio**2).sum()),
    }
    return float((weights * losses).sum()), weights * d, metrics


def value(
    values: np.ndarray,
    old_values: np.ndarray,
    returns: np.ndarray,
    mask: np.ndarray,
    cliprange: float = 0.2,
    count: float | None = None,
) -> tuple[float, np.ndarray, Metrics]:
    """Values, those at sampling, returns, mask, (B, T) each -> loss, dvalues (B, T), metrics.
    count: tokens of the whole step.

    >>> loss, dvalues, _ = value(*(np.array([[v]]) for v in (1.0, 0.9, 3.0)), np.ones((1, 1)))
    >>> loss, dvalues.tolist()
    (2.0, [[-2.0]])
    >>> value(*(np.array([[v]]) for v in (2.0, 0.9, 3.0)), np.ones((1, 1)))[1].tolist()  # held
    [[0.0]]
    """
    positive(cliprange=cliprange)
    m, v, old, r = masked(mask, values=values, old_values=old_values, returns=returns)
    weights = m / (max(1, m.sum()) if count is None else count)
    error, held = v - r, np.clip(v, old - cliprange, old + cliprange) - r
    losses = 0.5 * np.maximum(error**2, held**2)
    d = np.where(error**2 >= held**2, error, 0)
    metrics = {"clipfrac_value": float((weights * (held**2 > error**2)).sum())}
    return float((weights * losses).sum()), weights * d, metrics
