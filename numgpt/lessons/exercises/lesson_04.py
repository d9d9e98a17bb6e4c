"""Lesson 4: layer normalisation and GELU."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _rows(rng):
    x, weight, bias = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=5)
    return [
        (x, weight, bias),
        (0.01 * x + 3, weight, bias),
        (np.ones((2, 5)), weight, bias),
        (x, weight, bias, 0.1),
    ]


def _backward(rng, *axes):
    x = rng.normal(size=(*axes, 5))
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return rng.normal(size=x.shape), centred * rstd, rstd, rng.normal(size=5)


def _normalised(rng):
    return [_backward(rng, 3), _backward(rng, 1)]


def _texts(rng):
    return [_backward(rng, 2, 3), _backward(rng, 1, 4)]


def _bends(rng):
    return [(rng.normal(size=(3, 4)), 2 * rng.normal(size=(3, 4)))]


EXERCISES = (
    Exercise(
        "4.1",
        "layernorm_forward",
        _rows,
        (
            Mistake(
                "1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)",
                "1 / (np.sqrt((centred**2).mean(axis=1, keepdims=True)) + eps)",
                "is your epsilon inside the root? It is added to the variance.",
            ),
            Mistake(
                "(centred**2).mean(axis=1, keepdims=True)",
                "x.var(axis=1, keepdims=True, ddof=1)",
                "the variance divides by C, not by C - 1.",
            ),
            Mistake(
                "(centred**2).mean(axis=1, keepdims=True) + eps",
                "(centred**2).mean(axis=1, keepdims=True)",
                "epsilon is forgotten: a row in which nothing varies is divided by 0.",
            ),
            Mistake(
                "x.mean(axis=1, keepdims=True)",
                "x.mean(axis=0, keepdims=True)",
                "each row has a mean of its own, over its features: axis 1.",
            ),
            Mistake("x - x.mean(axis=1, keepdims=True)", "x", "the mean is not subtracted."),
            Mistake(
                "return weight * x_hat + bias",
                "return x_hat + bias",
                "the weight is missing: each feature has its scale.",
            ),
            Mistake(
                "return weight * x_hat + bias",
                "return weight * x_hat",
                "the bias is missing: each feature has its shift.",
            ),
            Mistake(
                "+ bias, x_hat, rstd",
                "+ bias, x_hat, 1 / rstd",
                "rstd is 1 over the standard deviation.",
            ),
            Mistake(" + eps)", " + 1e-5)", "epsilon is an argument, eps: use it, whatever it is."),
            Mistake(
                "(centred**2).mean(axis=1, keepdims=True)",
                "(centred**2).mean(axis=0, keepdims=True)",
                "each row has a variance of its own, over its features: axis 1.",
            ),
        ),
        ("y", "x_hat", "rstd"),
    ),
    Exercise(
        "4.2",
        "layernorm_backward",
        _normalised,
        (
            Mistake(
                "g - g_mean - x_hat",
                "g - x_hat",
                "your dx agrees but for a constant a row: is the mean's path missing?",
            ),
            Mistake(
                " - x_hat * g_x_hat_mean",
                "",
                "the third way is missing: x also changes the standard deviation that it is divided"
                " by.",
            ),
            Mistake(
                "g = dy * weight",
                "g = dy",
                "the weight is forgotten: the gradient at x̂ is dy · weight.",
            ),
            Mistake("rstd * (g", "(g", "the factor rstd is missing: all three ways have it."),
            Mistake(
                "(dy * x_hat).sum(axis=0)",
                "dy.sum(axis=0)",
                "the weight multiplies x̂, so its gradient is the sum of dy · x̂.",
            ),
            Mistake(
                "(dy * x_hat).sum(axis=0)",
                "(g * x_hat).sum(axis=0)",
                "dweight is made of dy, before it goes through the weight.",
            ),
            Mistake(
                "rstd * (g - g_mean - x_hat * g_x_hat_mean)",
                "rstd * g",
                "that is the direct way alone: x also reaches the result through the mean and"
                " through the standard deviation.",
            ),
            Mistake(
                "g_mean = g.mean(axis=1",
                "g_mean = g.sum(axis=1",
                "the way through the mean is divided by C: is yours a sum?",
            ),
            Mistake(
                "(g * x_hat).mean(axis=1",
                "(g * x_hat).sum(axis=1",
                "the way through the standard deviation is divided by C: is yours a sum?",
            ),
            Mistake(
                "g_mean = g.mean(axis=1, keepdims=True)\n    g_x_hat_mean = (g * x_hat).mean(",
                "g_mean = g.sum(axis=1, keepdims=True)\n    g_x_hat_mean = (g * x_hat).sum(",
                "the ways through the mean and the standard deviation are divided by C: are yours"
                " sums?",
            ),
            Mistake(
                "g - g_mean - x_hat",
                "g - g_mean + x_hat",
                "the third way has the wrong sign: the larger the deviation, the smaller x̂.",
            ),
            Mistake(
                "g_mean = g.mean(axis=1",
                "g_mean = g.mean(axis=0",
                "each row has a mean of its own: axis 1.",
            ),
            Mistake(
                "dy.sum(axis=0)",
                "g.sum(axis=0)",
                "the bias comes after the weight: its gradient is made of dy.",
            ),
        ),
        ("dx", "dweight", "dbias"),
    ),
    Exercise(
        "4.3",
        "layernorm_backward_of_texts",
        _texts,
        (
            Mistake(
                "(dy * x_hat).sum(axis=(0, 1))",
                "(dy * x_hat).mean(axis=0).sum(axis=0)",
                "off by a factor of B: sum or mean? All rows of all texts add up.",
            ),
            Mistake(
                "dy.sum(axis=(0, 1))",
                "dy.mean(axis=0).sum(axis=0)",
                "off by a factor of B: sum or mean? All rows of all texts add up.",
            ),
            Mistake(
                "(dy * x_hat).sum(axis=(0, 1))",
                "(dy * x_hat).sum(axis=0)",
                "there are two axes of rows, B and T: sum over both.",
            ),
        ),
        ("dx", "dweight", "dbias"),
    ),
    Exercise(
        "4.4",
        "gelu_backward",
        _bends,
        (
            Mistake(
                "1 + 3 * 0.044715",
                "1 + 0.044715",
                "x³ has the derivative 3x²: the 3 is missing in u'.",
            ),
            Mistake(
                " + 0.5 * x * (1 - t**2) * du",
                "",
                "the product rule has two terms: x is also inside of tanh.",
            ),
            Mistake("(1 - t**2) * du", "(1 - t**2)", "the inner derivative u' is missing."),
            Mistake("dy * (0.5", "(0.5", "dy is forgotten: the chain rule multiplies by it."),
            Mistake(
                "0.5 * (1 + t) + ", "", "the product rule has two terms: x also stands in front."
            ),
            Mistake("(1 - t**2)", "(1 - t)", "the slope of tanh has t squared in it."),
            Mistake("3 * 0.044715 * x**2", "3 * 0.044715 * x**3", "x³ has the derivative 3x²."),
            Mistake("+ 0.5 * x *", "+ x *", "both terms have the ½ that stands in front."),
            Mistake(
                "du = np.sqrt(2 / np.pi) * (", "du = (", "u' has the factor √(2/π) that u has."
            ),
        ),
        ("dx",),
    ),
)
