"""Lesson 10: answers, preferences, rewards."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _answers(rng):
    return [
        (rng.normal(size=(5, 7)), rng.integers(7, size=5), 2),
        (2000 * rng.normal(size=(4, 7)), rng.integers(7, size=4), 1),
    ]


def _adapters(rng):
    sizes = ((4, 3), (4, 5), (2, 5), (3, 2))
    return [(*(rng.normal(size=size) for size in sizes), 0.7)]


def _pairs(rng):
    return [(*rng.normal(size=(4, 5)), 0.3), (*(3 * rng.normal(size=(4, 2))),)]


def _groups(rng):
    return [
        (rng.normal(size=8), 4),
        (np.array([1.0, 0, 0, 0, 2, 2, 2, 2]), 4),
        (np.array([1.0, 3, 5, 9]), 2),
    ]


def _ratios(rng):
    logp = np.log(np.array([1.0, 1.5, 0.5, 1.1, 1.5, 0.5, 0.9]))
    advantages = np.array([1.0, 1, 1, 1, -1, -1, -1])
    return [
        (logp, 0 * logp, advantages),
        (*rng.normal(size=(3, 2, 3)), 0.1),
    ]


EXERCISES = (
    Exercise(
        "10.1",
        "log_prob_of_answer",
        _answers,
        (
            Mistake(
                "log_p[places - 1, ids[places]]",
                "log_p[places, ids[places]]",
                "off by one: the logits at a position speak of the next id.",
            ),
            Mistake(
                "np.arange(prompt_length, len(ids))",
                "np.arange(1, len(ids))",
                "the prompt is counted: it was given, only the answer's ids are added up.",
            ),
            Mistake(
                "np.arange(prompt_length, len(ids))",
                "np.arange(prompt_length + 1, len(ids))",
                "the answer's first id is missing: the logits at the prompt's last id predict it.",
            ),
            Mistake(
                "log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))",
                "log_p = logits",
                "those are the logits: log p is what is left after the softmax's logarithm.",
            ),
            Mistake(
                "log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))",
                "log_p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)",
                "those are probabilities, which are multiplied: add up their logarithms.",
            ),
            Mistake(
                "return log_p[places - 1",
                "return -log_p[places - 1",
                "that is the loss: log P itself is never above 0.",
            ),
            Mistake(
                "ids[places]].sum()",
                "ids[places]].mean()",
                "a sum, not a mean: probabilities of all ids are multiplied.",
            ),
            Mistake(
                "z = logits - logits.max(axis=1, keepdims=True)",
                "z = logits",
                "a softmax without its maximum: the exponential of a large logit is infinite.",
            ),
        ),
        ("log P",),
    ),
    Exercise(
        "10.2",
        "lora_backward",
        _adapters,
        (
            Mistake(
                "du = scale * dy @ b", "du = dy @ b", "the scale is forgotten on the way there."
            ),
            Mistake("scale * dy.T @ u", "dy.T @ u", "the scale is forgotten on the way there."),
            Mistake(
                "u = x @ a.T",
                "scale = scale / len(a); u = x @ a.T",
                "scale is α/r already: it is not divided by r again.",
            ),
            Mistake(
                "du = scale * dy @ b",
                "du = scale**2 * dy @ b",
                "the scale is there twice: it appears once on each way.",
            ),
            Mistake(
                "return du @ a, du.T @ x, scale * dy.T @ u",
                "return du @ a, (du.T @ x) / len(x), scale * dy.T @ u / len(x)",
                "off by a factor of N: sum or mean? Ways add up.",
            ),
        ),
        ("dx", "da", "db"),
    ),
    Exercise(
        "10.3",
        "dpo",
        _pairs,
        (
            Mistake(
                "(chosen - ref_chosen) - (rejected - ref_rejected)",
                "chosen - rejected",
                "the reference is forgotten: what counts is how each has changed against it.",
            ),
            Mistake(
                "np.logaddexp(0, -z).mean()",
                "np.logaddexp(0, -z).sum()",
                "off by a factor of B: the mean over pairs is asked for.",
            ),
            Mistake(
                "z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))",
                "beta = 0.1; z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))",
                "beta is an argument: 0.1 is only its default.",
            ),
            Mistake(
                "z = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))",
                "z = (chosen - ref_chosen) - (rejected - ref_rejected)",
                "β is forgotten: the loss is -log σ(βΔ).",
            ),
            Mistake(
                "-dchosen",
                "dchosen",
                "the rejected one's sign: the loss falls when it gets less likely.",
            ),
            Mistake(
                "-beta * wrong / len(z)",
                "-wrong / len(z)",
                "the inner derivative is missing: z is β times the difference.",
            ),
            Mistake(
                "-beta * wrong / len(z)",
                "-beta * (1 - wrong) / len(z)",
                "that is σ(z) where σ(-z) belongs: a pair that is ranked right should teach least.",
            ),
            Mistake(
                "-beta * wrong / len(z)",
                "-beta * wrong",
                "off by a factor of B: the loss is a mean, and that divides the gradient too.",
            ),
            Mistake(
                "dchosen = -beta",
                "dchosen = beta",
                "the sign is wrong: the loss falls when the chosen one gets likelier.",
            ),
        ),
        ("loss", "dchosen", "drejected"),
    ),
    Exercise(
        "10.4",
        "advantages_of_groups",
        _groups,
        (
            Mistake(
                "groups = rewards.reshape(-1, size)",
                "groups = rewards.reshape(1, -1)",
                "the mean is that of all rewards: each group, the answers to one prompt, has its"
                " own.",
            ),
            Mistake(
                "groups = rewards.reshape(-1, size)",
                "groups = rewards.reshape(size, -1).T",
                "the answers to one prompt stand one after another.",
            ),
            Mistake(
                " + 1e-4",
                "",
                "add 10⁻⁴ to the standard deviation, as the formula does: it is 0 where all of a"
                " group got the same.",
            ),
            Mistake(
                " + 1e-4",
                " + 1e-8",
                "add 10⁻⁴ to the standard deviation, as the formula does: it is 0 where all of a"
                " group got the same.",
            ),
            Mistake(
                "groups.std(axis=1, ddof=1",
                "groups.var(axis=1, ddof=1",
                "that is the variance: divide by its root, the standard deviation.",
            ),
            Mistake("ddof=1, ", "", "the standard deviation divides by n - 1 here: ddof=1."),
            Mistake(
                "apart / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-4)",
                "apart",
                "it is not divided by the standard deviation.",
            ),
        ),
        ("advantages",),
    ),
    Exercise(
        "10.5",
        "policy_loss",
        _ratios,
        (
            Mistake(
                "np.where(ratio * advantages <= held * advantages, -ratio * advantages, 0)",
                "np.where(ratio == held, -ratio * advantages, 0)",
                "the clip stops the gradient whatever the sign of the advantage: where a good id"
                " has become less likely, or a bad one likelier, it has to come back.",
            ),
            Mistake(
                "ratio * advantages <= held * advantages",
                "ratio * advantages < held * advantages",
                "inside of the clip both terms are the same, and there the gradient flows.",
            ),
            Mistake(
                "ratio = np.exp(logp - old_logp)",
                "ratio = np.exp(old_logp - logp)",
                "the ratio is upside down: π/π_old.",
            ),
            Mistake(
                "np.where(ratio * advantages <= held * advantages, -ratio * advantages, 0)",
                "-ratio * advantages",
                "nothing stops the gradient: where the clipped term is the smaller, it is 0.",
            ),
            Mistake(
                "np.where(ratio * advantages <= held * advantages, -ratio * advantages, 0)",
                "np.where(ratio * advantages <= held * advantages, -advantages, 0)",
                "the ratio's own derivative is missing: dρ/dlog π = ρ.",
            ),
            Mistake(
                "-np.minimum(",
                "-np.maximum(",
                "the smaller of the two terms counts: PPO is a pessimist.",
            ),
            Mistake(
                "-np.minimum(ratio * advantages, held * advantages).sum()",
                "-(held * advantages).sum()",
                "only the clipped term is there: the smaller of both counts.",
            ),
        ),
        ("loss", "dlogp"),
    ),
)
