"""Every objective with its options: inputs, what differentiates, and the formula in PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from numgpt import objectives

PAIRS, COMPLETIONS, TOKENS = 7, 6, 5


@dataclass
class Case:
    arrays: Callable[[np.random.Generator], dict[str, np.ndarray]]
    ours: Callable[..., tuple]  # (**arrays, count) -> loss, gradients, metrics
    formula: Callable[..., Any]  # (torch, **tensors) -> loss
    by: tuple[str, ...]  # the inputs that have gradients, in their order
    counts: str = "pairs"  # what `count` is: pairs, completions, or tokens

    def run(self, arrays, **options):
        loss, gradients, metrics = self.ours(**arrays, **options)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return loss, dict(zip(self.by, gradients, strict=True)), metrics

    def count(self, arrays) -> float:
        if self.counts == "tokens":
            return arrays["mask"].sum()
        return len(next(iter(arrays.values())))


def pairs(rng, references=True, lengths=False):
    names = ["chosen_logps", "rejected_logps"]
    names += ["ref_chosen_logps", "ref_rejected_logps"] if references else []
    arrays = {name: -rng.uniform(1, 12, PAIRS) for name in names}
    if lengths:
        arrays["chosen_lengths"], arrays["rejected_lengths"] = rng.integers(1, 9, (2, PAIRS))
    return arrays


def dpo(loss_type, formula, arrays=pairs, **options):
    """Of one kind: its formula takes the options under our names."""

    def ours(chosen_lengths=None, rejected_lengths=None, **rest):
        lengths = None if chosen_lengths is None else (chosen_lengths, rejected_lengths)
        return objectives.dpo(lengths=lengths, loss_type=loss_type, **rest, **options)

    by = "chosen_logps", "rejected_logps"
    return Case(arrays, ours, partial(formula, **options), by)


def log_ratios(t, ref=True):
    chosen, rejected = t["chosen_logps"], t["rejected_logps"]
    if ref:
        chosen, rejected = chosen - t["ref_chosen_logps"], rejected - t["ref_rejected_logps"]
    return chosen, rejected


def smoothed(torch, logit, epsilon):
    logsigmoid = torch.nn.functional.logsigmoid
    return (-(1 - epsilon) * logsigmoid(logit) - epsilon * logsigmoid(-logit)).mean()


def logistic(torch, beta, label_smoothing=0.0, **t):
    chosen, rejected = log_ratios(t)
    return smoothed(torch, beta * (chosen - rejected), label_smoothing)


def robust(torch, beta, label_smoothing, **t):
    logsigmoid, epsilon = torch.nn.functional.logsigmoid, label_smoothing
    chosen, rejected = log_ratios(t)
    logit = beta * (chosen - rejected)
    loss = -(1 - epsilon) * logsigmoid(logit) + epsilon * logsigmoid(-logit)
    return (loss / (1 - 2 * epsilon)).mean()


def hinge(torch, beta, **t):
    chosen, rejected = log_ratios(t)
    return torch.relu(1 - beta * (chosen - rejected)).mean()


def ipo(torch, beta, chosen_lengths, rejected_lengths, **t):
    chosen, rejected = log_ratios(t)
    return ((chosen / chosen_lengths - rejected / rejected_lengths - 1 / (2 * beta)) ** 2).mean()


def apo_zero(torch, beta, **t):
    chosen, rejected = log_ratios(t)
    return (1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)).mean()


def bco_pair(torch, beta, **t):
    logsigmoid = torch.nn.functional.logsigmoid
    chosen, rejected = log_ratios(t)
    return (-logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)).mean()


def simpo(torch, beta, gamma, label_smoothing, chosen_lengths, rejected_lengths, **t):
    chosen, rejected = log_ratios(t, ref=False)
    logit = beta * (chosen / chosen_lengths - rejected / rejected_lengths) - gamma
    return smoothed(torch, logit, label_smoothing)


def orpo(torch, beta, chosen_lengths, rejected_lengths, **t):
    chosen, rejected = log_ratios(t, ref=False)
    chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    p, q = torch.exp(chosen), torch.exp(rejected)
    log_odds = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
    return (-chosen - beta * torch.nn.functional.logsigmoid(log_odds)).mean()


def scores(rng, margin=False):
    arrays = {name: rng.normal(0, 2, PAIRS) for name in ("chosen_scores", "rejected_scores")}
    return arrays | ({"margin": rng.uniform(0, 2, PAIRS)} if margin else {})


def bradley_terry(torch, c, chosen_scores, rejected_scores, margin=0):
    logit = chosen_scores - rejected_scores - margin
    centred = (chosen_scores + rejected_scores) ** 2
    return (-torch.nn.functional.logsigmoid(logit) + c * centred).mean()


def judged(rng):
    arrays = {name: -rng.uniform(1, 12, PAIRS) for name in ("logps", "ref_logps")}
    return arrays | {"desirable": rng.integers(0, 2, PAIRS).astype(bool)}


def kto(torch, beta, z, good, bad, logps, ref_logps, desirable):
    gained = logps - ref_logps
    desirable = desirable.bool()
    of_good = good * (1 - torch.sigmoid(beta * (gained - z)))
    of_bad = bad * (1 - torch.sigmoid(beta * (z - gained)))
    return torch.where(desirable, of_good, of_bad).mean()


def rollouts(rng, ref=False, per_token=False):
    """Completions of uneven lengths, the last without any token."""
    lengths = np.append(rng.integers(1, TOKENS + 1, COMPLETIONS - 1), 0)
    logps = -rng.uniform(0.1, 3, (COMPLETIONS, TOKENS))
    arrays = {"logps": logps, "old_logps": logps + rng.normal(0, 0.3, logps.shape)}
    shape = logps.shape if per_token else COMPLETIONS
    arrays["advantages"] = rng.normal(size=shape)
    arrays["mask"] = (np.arange(TOKENS) < lengths[:, None]).astype(float)
    if ref:
        arrays["ref_logps"] = logps + rng.normal(0, 0.5, logps.shape)
    return arrays


def policy(torch, loss_type, beta, epsilon, epsilon_high, level, corrected_kl, max_length, logps,
           old_logps, advantages, mask, ref_logps=None):  # fmt: skip
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    log_ratio = logps - old_logps
    n = mask.sum(1, keepdim=True).clamp(min=1)
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1, keepdim=True) / n).expand_as(mask)
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    if beta:
        k3 = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
        loss = loss + beta * (k3 * ratio if corrected_kl else k3)
    if loss_type == "grpo":
        return ((loss * mask).sum(1, keepdim=True) / n).mean()
    divisor = len(mask) * max_length if loss_type == "dr_grpo" else mask.sum()
    return (loss * mask).sum() / divisor


USUAL = {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.2, "level": "token"}
USUAL |= {"corrected_kl": True, "max_length": None}


def grpo(loss_type="dapo", **changes):
    options = USUAL | {"loss_type": loss_type} | changes
    ours, formula = partial(objectives.grpo, **options), partial(policy, epsilon=0.2, **options)
    counts = "tokens" if loss_type in ("dapo", "bnpo") else "completions"
    return Case(partial(rollouts, ref=options["beta"] > 0), ours, formula, ("logps",), counts)


def plain(torch, logps, advantages, mask):
    return -(advantages[:, None] * logps * mask).sum() / len(mask)


def without_old(rng):
    arrays = rollouts(rng)
    del arrays["old_logps"]
    return arrays


def whole_ratios(torch, low, logps, old_logps, advantages, mask):
    ratio = torch.exp(((logps - old_logps) * mask).sum(1))
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + low) * advantages).mean()


def valued(rng):
    arrays = rollouts(rng)
    shape = arrays["mask"].shape
    values = rng.normal(size=shape)
    arrays = {"values": values, "old_values": values + rng.normal(0, 0.3, shape)}
    return arrays | {"returns": rng.normal(size=shape), "mask": rollouts(rng)["mask"]}


def clipped_values(torch, cliprange, values, old_values, returns, mask):
    held = torch.max(torch.min(values, old_values + cliprange), old_values - cliprange)
    loss = torch.max((values - returns) ** 2, (held - returns) ** 2)
    return 0.5 * (loss * mask).sum() / mask.sum()


long_pairs = partial(pairs, lengths=True)
bare_pairs = partial(pairs, references=False, lengths=True)

CASES = {
    "dpo": dpo("sigmoid", logistic, beta=0.3),
    "dpo, smoothed": dpo("sigmoid", logistic, beta=0.3, label_smoothing=0.1),
    "robust": dpo("robust", robust, beta=0.3, label_smoothing=0.2),
    "hinge": dpo("hinge", hinge, beta=0.3),
    "ipo": dpo("ipo", ipo, long_pairs, beta=0.3),
    "apo_zero": dpo("apo_zero", apo_zero, beta=0.3),
    "bco_pair": dpo("bco_pair", bco_pair, beta=0.3),
    "simpo": dpo("simpo", simpo, bare_pairs, beta=2.0, gamma=0.7, label_smoothing=0.1),
    "orpo": dpo("orpo", orpo, bare_pairs, beta=0.3),
    "reward": Case(
        partial(scores, margin=True),
        partial(objectives.reward, center_coefficient=0.05),
        partial(bradley_terry, c=0.05),
        ("chosen_scores", "rejected_scores"),
    ),
    "reward, plain": Case(
        scores,
        objectives.reward,
        partial(bradley_terry, c=0.0),
        ("chosen_scores", "rejected_scores"),
    ),
    "kto": Case(
        judged,
        partial(objectives.kto, z=0.4, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7),
        partial(kto, beta=0.3, z=0.4, good=1.5, bad=0.7),
        ("logps",),
    ),
    "reinforce": Case(without_old, objectives.reinforce, plain, ("logps",), "completions"),
    "rloo": Case(
        rollouts, objectives.rloo, partial(whole_ratios, low=0.2), ("logps",), "completions"
    ),
    "dapo": grpo(),
    "dapo, clip-higher": grpo(epsilon_high=0.4),
    "dapo, ρ·k3": grpo(beta=0.2),
    "dapo, k3": grpo(beta=0.2, corrected_kl=False),
    "bnpo": grpo("bnpo", beta=0.1),
    "grpo": grpo("grpo", beta=0.1),
    "dr_grpo": grpo("dr_grpo", max_length=8),
    "gspo": grpo("grpo", level="sequence"),
    "gspo, ρ·k3": grpo("grpo", beta=0.2, level="sequence"),
    "gspo, k3": grpo("grpo", beta=0.2, level="sequence", corrected_kl=False),
    "dapo of sequences": grpo(beta=0.2, level="sequence"),
    "ppo": Case(
        partial(rollouts, per_token=True),
        objectives.ppo,
        partial(policy, epsilon=0.2, **USUAL),
        ("logps",),
        "tokens",
    ),
    "value": Case(
        valued, objectives.value, partial(clipped_values, cliprange=0.2), ("values",), "tokens"
    ),
}  # fmt: skip
