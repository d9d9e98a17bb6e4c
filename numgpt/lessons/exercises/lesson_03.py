"""Lesson 3: softmax and cross-entropy."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _logits(rng):
    apart = np.array([[0.0, 1.0, 2.0], [-2000.0, -2001.0, -2002.0]])
    return [
        (rng.normal(size=(4, 5)),),
        (np.array([[1000.0, 0.0, -1000.0], [999.0, 1000.0, 1001.0]]),),
        (apart,),
        (apart[1:],),
    ]


def _probabilities(rng):
    z = rng.normal(size=(4, 5))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return [(rng.normal(size=(4, 5)), p)]


def _targets(rng):
    return [
        (rng.normal(size=(4, 5)), np.array([0, 4, 2, 2])),
        (np.array([[800.0, 0.0, -800.0], [-900, -901, -902]]), np.array([2, 0])),
    ]


def _masked(rng):
    return [
        (rng.normal(size=(4, 5)), np.array([0, -100, 2, -100])),
        (rng.normal(size=(2, 3)), np.array([1, 0])),
        (rng.normal(size=(2, 3)), np.array([-100, -100])),
    ]


def _batches(rng):
    one = (rng.normal(size=(3, 4)), np.array([1, 3, 0]))
    other = (rng.normal(size=(3, 4)), np.array([-100, 2, -100]))
    none = (rng.normal(size=(2, 4)), np.array([-100, -100]))
    return [([one, other],), ([one, other, none],), ([none],)]


EXERCISES = (
    Exercise(
        "3.1",
        "softmax",
        _logits,
        (
            Mistake(
                "z - z.max(axis=1, keepdims=True)",
                "z",
                "the exponential of a large logit is infinite: subtract each row's largest first.",
            ),
            Mistake(
                "z.max(axis=1, keepdims=True)",
                "z.max()",
                "you subtract the largest of all rows: in a row far below it nothing is left, and"
                " that is 0/0. Each row has its own largest.",
            ),
            Mistake(
                "z.max(axis=1, keepdims=True)",
                "np.abs(z).max(axis=1, keepdims=True)",
                "the largest in size may be far above the largest: in a row of large negative"
                " logits nothing is left, and that is 0/0.",
            ),
            Mistake(
                "e.sum(axis=1, keepdims=True)",
                "e.sum()",
                "each row is to have the sum 1, not all rows together.",
            ),
            Mistake(
                "e.sum(axis=1, keepdims=True)",
                "e.sum(axis=0, keepdims=True)",
                "the columns have the sum 1: it should be the rows, axis 1.",
            ),
            Mistake(
                "z.max(axis=1, keepdims=True)",
                "z.max(axis=0, keepdims=True)",
                "you subtract each column's largest: a row has its own, axis 1.",
            ),
            Mistake(
                "z - z.max(",
                "z - z.min(",
                "the largest is to be subtracted: with anything smaller, the exponential can"
                " still be infinite.",
            ),
            Mistake(
                "z - z.max(",
                "z - z.mean(",
                "the largest is to be subtracted: with anything smaller, the exponential can"
                " still be infinite.",
            ),
            Mistake("z - z.max(", "z + z.max(", "the largest is to be subtracted, not added."),
        ),
        ("p",),
    ),
    Exercise(
        "3.2",
        "softmax_backward",
        _probabilities,
        (
            Mistake(
                "p * (dp - (dp * p).sum(axis=1, keepdims=True))",
                "dp * p * (1 - p)",
                "that is the derivative of p_i by its own z_i: each z moves the other"
                " probabilities too, by the denominator.",
            ),
            Mistake("(dp * p).sum", "dp.sum", "the average of dp is weighted by p."),
            Mistake(
                "(dp * p).sum",
                "(dp * p).mean",
                "a sum over the row, not a mean: p carries the weights already.",
            ),
            Mistake(
                "p * (dp - (dp * p).sum(axis=1, keepdims=True))",
                "dp - (dp * p).sum(axis=1, keepdims=True)",
                "the factor p_j in front is missing.",
            ),
            Mistake(
                "(dp * p).sum(axis=1, keepdims=True)",
                "(dp * p).sum()",
                "each row has an average of its own: axis 1.",
            ),
            Mistake(
                "(dp * p).sum(axis=1, keepdims=True)",
                "(dp * p).sum(axis=0, keepdims=True)",
                "each row has an average of its own: axis 1.",
            ),
            Mistake(
                "p * (dp - (dp * p).sum(axis=1, keepdims=True))",
                "p * dp - (dp * p).sum(axis=1, keepdims=True)",
                "p_j multiplies the whole bracket.",
            ),
            Mistake(
                "p * (dp - (dp * p).sum(axis=1, keepdims=True))",
                "dp * p",
                "the denominator's way is missing: each z moves the other probabilities, too.",
            ),
        ),
        ("dz",),
    ),
    Exercise(
        "3.3",
        "cross_entropy",
        _targets,
        (
            Mistake(
                "dz / len(z)",
                "dz",
                "off by a factor of N: the loss is a mean, and that divides the gradient too.",
            ),
            Mistake(
                "-log_p[rows, targets].mean()",
                "-log_p[rows, targets].sum()",
                "off by a factor of N: a mean is asked for, this is a sum.",
            ),
            Mistake(
                "-log_p[rows, targets].mean()",
                "-np.log(np.exp(log_p))[rows, targets].mean()",
                "the logarithm of a p that is too small to be stored is -∞: use z_t - M - log Σ.",
            ),
            Mistake(
                "dz[rows, targets] -= 1",
                "pass",
                "what was predicted *minus what came*: 1 is to be subtracted at the target.",
            ),
            Mistake(
                "dz[rows, targets] -= 1",
                "dz[:, targets] -= 1",
                "dz[:, targets] is whole columns: each row has one target, dz[rows, targets].",
            ),
            Mistake(
                "dz = np.exp(log_p)\n    dz[rows, targets] -= 1",
                "dz = -np.exp(log_p)\n    dz[rows, targets] += 1",
                "the sign is wrong: that is the gradient of log p, and the loss is -log p.",
            ),
            Mistake(
                "z = z - z.max(axis=1, keepdims=True)",
                "z = z + 0",
                "the exponential of a large logit is infinite: subtract each row's largest first.",
            ),
            Mistake(
                "z.max(axis=1, keepdims=True)",
                "z.max()",
                "you subtract the largest of all rows: in a row far below it nothing is left."
                " Each row has its own largest.",
            ),
            Mistake(
                "-log_p[rows, targets].mean()",
                "-np.log(np.exp(log_p) + 1e-12)[rows, targets].mean()",
                "a small number inside of the logarithm hides the right loss where p is too small"
                " to be stored: use z_t - M - log Σ.",
            ),
            Mistake("dz / len(z)", "dz / z.size", "divide by the number of rows, N, not by N · V."),
            Mistake(
                "-log_p[rows, targets].mean()",
                "-(log_p * (np.arange(z.shape[1]) == targets[:, None])).mean()",
                "divide by the number of rows, N, not by N · V.",
            ),
        ),
        ("loss", "dz"),
    ),
    Exercise(
        "3.4",
        "masked_cross_entropy",
        _masked,
        (
            Mistake(
                "loss, dz[counted] = cross_entropy(z[counted], targets[counted])",
                "loss, dz[counted] = cross_entropy(z[counted], targets[counted]);"
                " loss = loss * counted.mean(); dz = dz * counted.mean()",
                "you divide by the number of all rows: those that do not count are not counted"
                " there either.",
            ),
            Mistake(
                "if not counted.any():",
                "if False:",
                "where nothing counts, that is 0/0: the loss is 0 then, and so is its gradient.",
            ),
            Mistake(
                "    loss, dz[counted] = cross_entropy(z[counted], targets[counted])",
                "    dz = cross_entropy(z, np.where(counted, targets, 0))[1]\n"
                "    loss = cross_entropy(z[counted], targets[counted])[0]",
                "rows that do not count must have a gradient of 0.",
            ),
            Mistake(
                "    loss, dz[counted] = cross_entropy(z[counted], targets[counted])",
                "    loss = cross_entropy(z[counted], targets[counted])[0]\n    dz ="
                " cross_entropy(z, np.where(counted, targets, 0))[1] / counted.mean()",
                "rows that do not count must have a gradient of 0.",
            ),
        ),
        ("loss", "dz"),
    ),
    Exercise(
        "3.5",
        "loss_of_step",
        _batches,
        (
            Mistake(
                "np.array(counts) / max(1, sum(counts))",
                "np.full(len(batches), 1 / len(batches))",
                "that is a mean of means: a row of a batch that counts few then weighs more. Count"
                " the rows of the whole step first.",
            ),
            Mistake(
                "np.array(counts) / max(1, sum(counts))",
                "np.array(counts)",
                "off by a factor: divide by what counts in the whole step.",
            ),
            Mistake(
                "counts = [np.count_nonzero(targets != -100) for _, targets in batches]",
                "counts = [len(targets) for _, targets in batches]",
                "rows whose target is -100 are counted: they are no part of the mean.",
            ),
            Mistake(
                "/ max(1, sum(counts))",
                "/ sum(counts)",
                "where nothing counts in the whole step, that is 0/0: the loss is 0 then.",
            ),
        ),
        ("loss", "the list of gradients"),
    ),
)
