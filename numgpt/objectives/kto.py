"""KTO: completions that are good or bad by themselves, without pairs (Ethayarajh et al. 2024,
arXiv:2402.01306), after how people weigh gains and losses (Kahneman & Tversky 1979).

With s = log π(y|x) - log π_ref(y|x), what a completion has gained, and z, what the policy has
gained on completions in general,

    loss = λ⁺ (1 - σ(β (s - z)))  of a good one          dloss/dlog π = -λ⁺ β σ'(β (s - z))
           λ⁻ (1 - σ(β (z - s)))  of a bad one           dloss/dlog π =  λ⁻ β σ'(β (z - s))

where σ'(a) = σ(a) σ(-a). The value saturates: what is far better, or far worse, than z
already pulls no more. z = max(0, mean of s over completions of *other* prompts), an estimate of
KL(π ‖ π_ref) through which no gradient goes; of the whole step, so that cutting it changes nothing.
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import Metrics, positive, same_shapes, sigmoid


def mismatched_kl(logps: np.ndarray, ref_logps: np.ndarray, count: float | None = None) -> float:
    """Log-probabilities of completions after the prompts of others, (B,) each, all of a step -> z.
    With `count` a part of the mean: add the parts, then z = max(0, sum)."""
    same_shapes(logps=logps, ref_logps=ref_logps)
    mean = float((logps - ref_logps).sum() / (max(1, len(logps)) if count is None else count))
    return max(0.0, mean) if count is None else mean


def kto(
    logps: np.ndarray,
    ref_logps: np.ndarray,
    desirable: np.ndarray,
    z: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    count: float | None = None,
) -> tuple[float, np.ndarray, Metrics]:
    """Log-probabilities of whole completions (B,), and which are good (B,) -> loss, dlogps (B,),
    metrics.  z is `mismatched_kl` of the step. Metrics are sums over the good completions, or over
    the bad ones, divided by the count of all; "chosen" is the part of them that is good.

    >>> logps, ref = np.array([-3.0, -9.0]), np.array([-4.0, -8.5])
    >>> loss, dlogps, metrics = kto(logps, ref, np.array([True, False]), z=0.25, beta=0.5)
    >>> values = 1 / (1 + np.exp(-0.5 * np.array([1.0 - 0.25, 0.25 - -0.5])))
    >>> np.isclose(loss, np.mean(1 - values))
    np.True_
    >>> np.allclose(dlogps, np.array([-1, 1]) * 0.5 * values * (1 - values) / 2)
    True
    """
    same_shapes(logps=logps, ref_logps=ref_logps)
    positive(beta=beta)
    desirable = np.asarray(desirable)
    if desirable.shape != logps.shape:
        raise ValueError(f"desirable has shape {desirable.shape}, logps {logps.shape}")
    if not z >= 0:
        raise ValueError(f"z={z}: expected 0 or more, of mismatched_kl")
    good = desirable.astype(bool)
    sign = np.where(good, 1, -1).astype(logps.dtype)
    weight = np.where(good, desirable_weight, undesirable_weight).astype(logps.dtype)
    gained = logps - ref_logps
    p = sigmoid(beta * sign * (gained - z))
    share = 1 / (max(1, len(logps)) if count is None else count)
    parts = {
        "rewards/chosen": np.where(good, beta * gained, 0),
        "rewards/rejected": np.where(good, 0, beta * gained),
        "logps/chosen": np.where(good, logps, 0),
        "logps/rejected": np.where(good, 0, logps),
        "chosen": good,
    }
    metrics = {name: float(values.sum() * share) for name, values in parts.items()}
    dlogps = -sign * weight * beta * p * (1 - p) * share
    return float((weight * (1 - p)).sum() * share), dlogps, metrics
