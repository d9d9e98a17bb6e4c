"""GRPO: several completions of a prompt, each as much likelier as it is better than the others
(Shao et al. 2024, arXiv:2402.03300), on PPO's clipped ratio (Schulman et al. 2017,
arXiv:1707.06347).

    A_i = (r_i - mean of its group) / (standard deviation of its group + 10⁻⁴)
    ρ_t = π(y_t) / π_old(y_t)           π_old being the policy that sampled
    l_t = -min(ρ_t A, clip(ρ_t, 1-ε, 1+ε_high) A) + β KL_t

No value model is needed: the group is the baseline. Why that is allowed: the policy gradient is
E[r ∇log π], and for any b that does not depend on the completion E[b ∇log π] = b ∇ Σ π = 0, so b
changes the noise of an estimate and not its mean. The mean of all G rewards holds r_i itself: with
it the gradient is (G-1)/G of that, which is but another learning rate (leave_one_out is exact). The
division is a choice: a prompt whose rewards hardly differ counts as much as another.

Backward. dρ/dlog π = ρ, so the first term has the derivative -ρA, and none where the clipped one is
the smaller: where ρ > 1+ε_high and A > 0, or ρ < 1-ε and A < 0, as the policy has gone far enough
there. (On the other side of the clip it comes back.) With one step for each rollout ρ = 1: then the
loss is -mean A, near 0, whatever is learnt, and the derivative is REINFORCE's, -A.

What the l_t are summed by is where the variants differ (loss_type), with n_i tokens in completion
i:

    dapo       Σ_t l_t / tokens of the step        every token weighs the same (Yu et al. 2025,
                                                   arXiv:2503.14476)
    grpo       Σ_i (Σ_t l_t / n_i) / completions   every completion does: in a long one, each token
                                                   weighs less
    dr_grpo    Σ_t l_t / (completions · L_max)     a constant, so that length gets no reward (Liu et
                                                   al. 2025, arXiv:2503.20783)
    bnpo       Σ_t l_t / tokens of the batch       over a whole step that is dapo, and so it is here

KL_t is k3, or ρ_t k3 (kl.py), each token's with what came before it held fixed.

level="sequence" (GSPO, Zheng et al. 2025, arXiv:2507.18071) has one ratio for a completion,
ρ = exp(Σ_t (log π - log π_old) / n): rewards are of completions, and so is what is clipped. Each
token then has a part 1/n in dlog ρ. (ρ k3 with that ρ is what trl computes; what kl.py derives is
of ratios of tokens.)
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import Metrics, masked, of_completions, one_of, positive
from numgpt.objectives.kl import kl

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo")
LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")
SMALLEST_STD = 1e-4  # is added: a group without spread has advantages of 0


def group_advantages(rewards: np.ndarray, group_size: int, scale: str = "group") -> np.ndarray:
    """Rewards (B,), the completions of a prompt one after another -> advantages (B,).

    scale: what the differences from the group's mean are divided by, the standard deviation of the
    "group", of the whole "batch", or "none". NaN stands for a completion that no reward applies to:
    it is left out of means, and its advantage is 0.

    >>> group_advantages(np.array([1.0, 0.0, 0.0, 1.0, 5.0, 5.0]), 2, scale="none")
    array([ 0.5, -0.5, -0.5,  0.5,  0. ,  0. ])
    >>> bool(np.allclose(group_advantages(np.array([1.0, 0.0]), 2), [0.5**0.5, -(0.5**0.5)], 1e-3))
    True
    """
    one_of("scale", scale, SCALES)
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"group_size={group_size} for {len(rewards)} rewards: expected 2 or more, of which the"
            " rewards are a multiple"
        )
    groups = rewards.reshape(-1, group_size)
    scored = ~np.isnan(groups)
    n = np.maximum(1, scored.sum(axis=1, keepdims=True))
    means = np.where(scored, groups, 0).sum(axis=1, keepdims=True) / n
    apart = np.where(scored, groups - means, 0)
    if scale == "group":
        variance = (apart**2).sum(axis=1, keepdims=True) / np.maximum(1, n - 1)
        apart = apart / (np.sqrt(variance) + SMALLEST_STD)
    elif scale == "batch":
        every = groups[scored]
        apart = apart / ((every.std(ddof=1) if len(every) > 1 else 0.0) + SMALLEST_STD)
    return apart.reshape(rewards.shape)


def clipped(
    log_ratio: np.ndarray, advantages: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """-min(ρA, clip(ρ, 1-low, 1+high) A) and its derivative by log ρ."""
    log_ratio = np.where(advantages == 0, 0, log_ratio)  # which may be too large for a number
    ratio = np.exp(log_ratio)
    free, held = ratio * advantages, np.clip(ratio, 1 - low, 1 + high) * advantages
    return -np.minimum(free, held), np.where(free <= held, -free, 0)


def grpo(
    logps: np.ndarray,
    old_logps: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    ref_logps: np.ndarray | None = None,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: str = "dapo",
    count: float | None = None,
    level: str = "token",
    corrected_kl: bool = True,
    max_length: int | None = None,
    tokens: float | None = None,
) -> tuple[float, np.ndarray, Metrics]:
    """Log-probabilities of the completions' tokens (B, T), by the policy, the one that sampled and,
    with β, the reference; advantages (B,), mask (B, T) -> loss, dlogps (B, T), metrics.

    count: of the whole step, tokens for dapo and bnpo, completions for grpo and dr_grpo, which
    needs max_length, L_max. corrected_kl: the KL term is ρ·k3, else k3 (kl.py). tokens: of the
    whole step, that metrics are means over. Each default is what the call has.

    >>> logps = np.log(np.array([[0.5, 0.9], [0.2, 0.1]]))
    >>> old = np.log(np.array([[0.4, 0.9], [0.3, 0.1]]))
    >>> mask = np.array([[1, 1], [1, 0]])
    >>> loss, dlogps, metrics = grpo(logps, old, np.array([1.0, -1.0]), mask)
    >>> ratio = np.exp(logps - old)  # 1.25 is clipped to 1.2; 0.67 to 0.8
    >>> bool(np.isclose(loss, -(1.2 + 1 - 0.8) / 3))
    True
    >>> np.allclose(dlogps, [[0, -1 / 3], [0, 0]])
    True
    """
    one_of("loss_type", loss_type, LOSS_TYPES)
    one_of("level", level, LEVELS)
    high = epsilon if epsilon_high is None else epsilon_high
    positive(epsilon=epsilon, epsilon_high=high)
    if beta and ref_logps is None:
        raise ValueError(f"beta={beta} needs ref_logps, the reference's log-probabilities")
    of_completions(advantages, mask)
    m, logps, old_logps, ref_logps = masked(
        mask, logps=logps, old_logps=old_logps, ref_logps=ref_logps
    )
    n = np.maximum(1, m.sum(axis=1, keepdims=True))  # tokens of each completion
    weights = m / _divisors(loss_type, m, n, count, max_length)

    a = advantages[:, None].astype(logps.dtype)
    log_ratio = logps - old_logps
    if level == "sequence":
        log_ratio = np.broadcast_to(log_ratio.sum(axis=1, keepdims=True) / n, m.shape)
    ratio = np.exp(log_ratio)
    losses, dlog_ratio = clipped(log_ratio, a, epsilon, high)
    dlogps, metrics = np.zeros_like(losses), {}
    share = m / ((m.sum() if tokens is None else tokens) or 1)
    if ref_logps is not None:
        distance, dkl = kl(logps, ref_logps)
        metrics["kl"] = float((share * distance).sum())
        if beta:
            price = beta * (ratio if corrected_kl else np.ones_like(ratio))
            losses = losses + price * distance
            dlogps = weights * (price * dkl)
            if corrected_kl:
                dlog_ratio = dlog_ratio + price * distance
    if level == "token":
        dlogps += weights * dlog_ratio
    else:  # a completion's tokens have parts 1/n in the one ratio
        dlogps += (weights * dlog_ratio).sum(axis=1, keepdims=True) * m / n
    metrics |= {
        "clip_ratio/low_mean": float((share * ((ratio < 1 - epsilon) & (a < 0))).sum()),
        "clip_ratio/high_mean": float((share * ((ratio > 1 + high) & (a > 0))).sum()),
    }
    return float((weights * losses).sum()), dlogps, metrics


def _divisors(
    loss_type: str, m: np.ndarray, n: np.ndarray, count: float | None, max_length: int | None
) -> np.ndarray | float:
    """What each token's loss is divided by."""
    if loss_type in ("dapo", "bnpo"):
        return max(1, m.sum()) if count is None else count
    completions = len(m) if count is None else count
    if loss_type == "grpo":
        return n * completions
    if max_length is None or max_length < 1:
        raise ValueError(f"loss_type='dr_grpo' needs max_length, 1 or more, not {max_length}")
    return float(completions * max_length)
