"""How far the policy has gone from the reference: KL(π ‖ π_ref), estimated from samples.

    KL(π ‖ π_ref) = E_{y~π}[log π(y) - log π_ref(y)]

The vocabulary is large and a completion is one sample, so what is averaged is a function of the one
token that was sampled. With g = log π_ref - log π of that token (Schulman 2020, "Approximating KL
divergence"):

    k1 = -g               its mean is the KL; single ones may be negative, and vary much
    k3 = eᵍ - g - 1       its mean is the KL too, as E_π[eᵍ] = Σ_y π_ref(y) = 1; none is negative

As a loss. The gradient of a mean over samples of π has two parts, as the samples move as well:

    ∇ E_π[k] = E_π[k ∇log π] + E_π[∇k]

Whoever puts k into a loss and takes ∇k gets the second part alone. Of k1 it is E_π[∇log π] = 0: it
does nothing. Of k3, ∇k3 = (1 - eᵍ) ∇log π, whose mean is -E_π[eᵍ ∇log π] = -E_{π_ref}[∇log π], the
gradient of the *other* divergence, KL(π_ref ‖ π): equal near the reference, and biased away from it
(arXiv:2510.01555). Multiplied by the ratio of the policy to the one that sampled, ρ = π/π_old, the
samples' own movement is in the loss, as ∇ρ = ρ ∇log π:

    ∇(ρ k3) = ρ (k3 + 1 - eᵍ) ∇log π = ρ (log π - log π_ref) ∇log π

whose mean over samples of π_old is the gradient of KL(π ‖ π_ref) itself, also where ρ = 1. k1 in
the *reward* gives the same: the policy gradient brings E_π[k1 ∇log π], and the second part is 0.

All of that is of one choice: a token, with what came before it held fixed, or a whole completion.
Of a completion's tokens, ρ_t k3 leaves out that an early token changes what later ones cost; k1 in
the reward has it, where the rewards of later tokens are summed up.
"""

from __future__ import annotations

import numpy as np

from numgpt.objectives.functions import one_of

ESTIMATORS = ("k1", "k3")


def kl(
    logps: np.ndarray, ref_logps: np.ndarray, estimator: str = "k3"
) -> tuple[np.ndarray, np.ndarray]:
    """Of each token that was sampled from the policy, any shape -> the estimate, and its derivative
    by log π.

    >>> p, ref = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    >>> exact = np.sum(p * np.log(p / ref))
    >>> [bool(np.isclose(p @ kl(np.log(p), np.log(ref), k)[0], exact)) for k in ("k1", "k3")]
    [True, True]
    >>> bool((kl(np.log(p), np.log(ref))[0] >= 0).all())
    True
    """
    one_of("estimator", estimator, ESTIMATORS)
    gap = ref_logps - logps
    if estimator == "k1":
        return -gap, np.ones_like(gap)
    return np.expm1(gap) - gap, -np.expm1(gap)
