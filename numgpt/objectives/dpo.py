"""Direct preference optimisation: of two completions of a prompt, make the chosen one likelier than
the rejected one (Rafailov et al. 2023, arXiv:2305.18290), and its kin.

Where it comes from. Reinforcement learning from human feedback looks for the policy that maximises
a reward r(x, y) while it stays near the reference, E_π[r] - β KL(π ‖ π_ref). Written as one KL
divergence, E_π[log π - log π_ref - r/β] is least for

    π*(y|x) = π_ref(y|x) exp(r(x, y) / β) / Z(x)

and solved for r: r(x, y) = β log(π*/π_ref) + β log Z(x). Of two completions of one x the unknown Z
cancels in the difference of rewards. So in the Bradley–Terry model P(y⁺ beats y⁻) = σ(r⁺ - r⁻) the
policy is its own reward model: with s = log π(y|x) - log π_ref(y|x) and Δ = s⁺ - s⁻,

    loss = -log σ(βΔ)                   dloss/dlog π⁺ = -β σ(-βΔ),  dloss/dlog π⁻ the opposite

As both derivatives are equal but for the sign, only the margin is optimised. Where both completions
share tokens or habits, that of the chosen one may fall with it, and often does: its reward falls,
and the margin grows nevertheless.

The kin, each of a pair, with l' its derivative by Δ:

    sigmoid    -(1-ε) log σ(βΔ) - ε log σ(-βΔ)        l' = β (σ(βΔ) - (1-ε))
               a label is wrong with probability ε (cDPO); ε = 0 is DPO
    robust     (-(1-ε) log σ(βΔ) + ε log σ(-βΔ)) / (1-2ε)   unbiased under such labels
               (Chowdhury et al. 2024, arXiv:2403.00409)   l' = -β ((1-ε) σ(-βΔ) + ε σ(βΔ)) / (1-2ε)
    hinge      max(0, 1 - βΔ)  (Liu et al. 2023, arXiv:2309.06657, after Zhao et al. 2023,
               arXiv:2305.10425, who have no reference)               l' = -β where βΔ < 1
    ipo        (Δ̄ - 1/2β)²  (Azar et al. 2023, arXiv:2310.12036)    l' = 2 (Δ̄ - 1/2β)
               a margin that is large enough grows no further; Δ̄ of the means s/n of n tokens each

and those in which s⁺ and s⁻ do not come as their difference, with σ' = σ(a) σ(-a):

    apo_zero   1 - σ(βs⁺) + σ(βs⁻)  (D'Oosterlinck et al. 2024, arXiv:2408.06266)
               by s⁺  -β σ'(βs⁺)        by s⁻  β σ'(βs⁻)
    bco_pair   -log σ(βs⁺) - log σ(-βs⁻)  (Jung et al. 2024, arXiv:2404.04656, without their δ, a
               running mean of rewards)
               by s⁺  -β σ(-βs⁺)        by s⁻  β σ(βs⁻)

and those without a reference, of the mean log-probabilities s̄ = log π / n:

    simpo      -log σ(β (s̄⁺ - s̄⁻) - γ)  (Meng et al. 2024, arXiv:2405.14734), with ε as above
    orpo       -s̄⁺ - β log σ(o⁺ - o⁻),  o = log(p/(1-p)) with p = exp s̄  (Hong et al. 2024,
               arXiv:2403.07691); as do/ds̄ = 1/(1-p),
               by s̄⁺  -1 - β σ(o⁻ - o⁺)/(1-p⁺)      by s̄⁻  β σ(o⁻ - o⁺)/(1-p⁻)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numgpt.objectives.functions import Metrics, log_sigmoid, one_of, positive, same_shapes, sigmoid


class Options(NamedTuple):
    beta: float
    epsilon: float  # label smoothing
    gamma: float


Pair = tuple[np.ndarray, np.ndarray, np.ndarray]  # losses, their derivatives by s⁺ and by s⁻


def _sigmoid(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    logit = o.beta * (chosen - rejected) - o.gamma
    loss = -(1 - o.epsilon) * log_sigmoid(logit) - o.epsilon * log_sigmoid(-logit)
    d = o.beta * (sigmoid(logit) - (1 - o.epsilon))
    return loss, d, -d


def _robust(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    logit = o.beta * (chosen - rejected)
    loss = -(1 - o.epsilon) * log_sigmoid(logit) + o.epsilon * log_sigmoid(-logit)
    d = -o.beta * ((1 - o.epsilon) * sigmoid(-logit) + o.epsilon * sigmoid(logit))
    scale = 1 - 2 * o.epsilon
    return loss / scale, d / scale, -d / scale


def _hinge(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    short = 1 - o.beta * (chosen - rejected)
    d = np.where(short > 0, -o.beta, 0).astype(short.dtype)
    return np.maximum(0, short), d, -d


def _ipo(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    error = chosen - rejected - 1 / (2 * o.beta)
    return error**2, 2 * error, -2 * error


def _apo_zero(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    p, q = sigmoid(o.beta * chosen), sigmoid(o.beta * rejected)
    return 1 - p + q, -o.beta * p * (1 - p), o.beta * q * (1 - q)


def _bco_pair(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    loss = -log_sigmoid(o.beta * chosen) - log_sigmoid(-o.beta * rejected)
    return loss, -o.beta * sigmoid(-o.beta * chosen), o.beta * sigmoid(o.beta * rejected)


def _orpo(chosen: np.ndarray, rejected: np.ndarray, o: Options) -> Pair:
    smallest = np.finfo(chosen.dtype).eps  # of 1 - p, which has to be above 0
    others = [np.maximum(-np.expm1(logp), smallest) for logp in (chosen, rejected)]
    log_odds = (chosen - np.log(others[0])) - (rejected - np.log(others[1]))
    d = o.beta * sigmoid(-log_odds)
    return -chosen - o.beta * log_sigmoid(log_odds), -1 - d / others[0], d / others[1]


LOSSES: dict[str, Callable[[np.ndarray, np.ndarray, Options], Pair]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "apo_zero": _apo_zero,
    "bco_pair": _bco_pair,
    "simpo": _sigmoid,
    "orpo": _orpo,
}
WITHOUT_REFERENCE = frozenset(("simpo", "orpo"))
PER_TOKEN = WITHOUT_REFERENCE | {"ipo"}  # of means over the tokens of each completion
SMOOTHED = frozenset(("sigmoid", "robust", "simpo"))


def dpo(
    chosen_logps: np.ndarray,
    rejected_logps: np.ndarray,
    ref_chosen_logps: np.ndarray | None = None,
    ref_rejected_logps: np.ndarray | None = None,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    gamma: float = 0.5,
    lengths: tuple[np.ndarray, np.ndarray] | None = None,
    count: float | None = None,
) -> tuple[float, tuple[np.ndarray, np.ndarray], Metrics]:
    """Log-probabilities of whole completions, (B,) each -> loss, (dchosen, drejected), metrics.

    The reference's are for all but simpo and orpo; `lengths`, the completions' numbers of tokens,
    (B,) each, for ipo, simpo and orpo; gamma for simpo. Metrics: rewards, β times the log-ratios
    (of simpo and orpo the means s̄); their margins; how often the chosen one has the larger; the
    log-probabilities.

    >>> chosen, rejected, ref = np.array([-3.0, -9.0]), np.array([-4.0, -5.0]), np.full(2, -6.0)
    >>> loss, (dchosen, drejected), metrics = dpo(chosen, rejected, ref, ref, beta=0.5)
    >>> margin = 0.5 * ((chosen - ref) - (rejected - ref))
    >>> np.isclose(loss, np.mean(-np.log(1 / (1 + np.exp(-margin)))))
    np.True_
    >>> np.allclose(dchosen, -0.5 / (1 + np.exp(margin)) / 2) and np.allclose(drejected, -dchosen)
    True
    >>> metrics["rewards/margins"], metrics["rewards/accuracies"]
    (-0.75, 0.5)
    """
    one_of("loss_type", loss_type, LOSSES)
    positive(beta=beta)
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss_type not in SMOOTHED):
        raise ValueError(
            f"label_smoothing={label_smoothing}: expected 0, or below 0.5 with"
            f" {' or '.join(sorted(SMOOTHED))}"
        )
    same_shapes(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    logps = [chosen_logps, rejected_logps]
    if loss_type in WITHOUT_REFERENCE:
        ratios = logps
    elif ref_chosen_logps is None or ref_rejected_logps is None:
        raise ValueError(f"loss_type={loss_type!r} needs the reference's log-probabilities")
    else:
        ratios = [chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps]
    per = [np.ones_like(logp) for logp in logps]
    if loss_type in PER_TOKEN:
        counts = [np.asarray(n) for n in lengths or ()]
        if len(counts) != 2 or any(n.shape != per[0].shape or (n < 1).any() for n in counts):
            raise ValueError(
                f"loss_type={loss_type!r} needs the completions' lengths, 1 or more each: those"
                " that have no tokens are no completions"
            )
        per = [1 / n.astype(logps[0].dtype) for n in counts]
    compared = [s * each for s, each in zip(ratios, per, strict=True)]
    options = Options(beta, label_smoothing, gamma if loss_type == "simpo" else 0.0)
    losses, dchosen, drejected = LOSSES[loss_type](compared[0], compared[1], options)
    share = 1 / (max(1, len(losses)) if count is None else count)
    chosen, rejected = (beta * s for s in (compared if loss_type in WITHOUT_REFERENCE else ratios))
    parts = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": chosen > rejected,
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    metrics = {name: float(values.sum() * share) for name, values in parts.items()}
    gradients = dchosen * per[0] * share, drejected * per[1] * share
    return float(losses.sum() * share), gradients, metrics
