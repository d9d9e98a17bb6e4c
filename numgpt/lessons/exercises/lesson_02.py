"""Lesson 2: neurons, linear layers, numerical gradients."""

from __future__ import annotations

import numpy as np

from numgpt.lessons.checking import Exercise, Mistake


def _neuron(rng):
    x, w = rng.normal(size=(2, 4))
    return [
        (2.0, np.array([1.0, 2.0]), np.array([0.5, -0.25]), float(np.tanh(0.1))),
        (-0.7, x, w, float(np.tanh(w @ x + 0.4))),
    ]


def sum_of_cubes(x):
    """Σ x³, which bends."""
    return float((x**3).sum())


def product_of_all(x):
    """The product of all elements: each one's slope depends on the others."""
    return float(np.prod(x))


def _functions(rng):
    return [
        (sum_of_cubes, np.array([1.0, -2.0, 0.5]), 1e-3),
        (sum_of_cubes, np.array([1.0, -2.0, 0.5]), 1e-2),
        (product_of_all, rng.normal(size=(2, 3)), 1e-5),
    ]


def _linear(rng):
    return [
        (rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)),
        (rng.normal(size=(1, 1)), rng.normal(size=(1, 5)), rng.normal(size=5)),
    ]


def _linear_back(rng):
    return [
        (rng.normal(size=(4, 2)), (rng.normal(size=(4, 3)), rng.normal(size=(3, 2)))),
        (rng.normal(size=(3, 3)), (rng.normal(size=(3, 3)), rng.normal(size=(3, 3)))),
    ]


def _branch(rng):
    x, w1, w2 = rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=(5, 3))
    a = x @ w1
    return [(rng.normal(size=(4, 3)), (x, a, np.maximum(a, 0), w1, w2))]


EXERCISES = (
    Exercise(
        "2.1",
        "neuron_backward",
        _neuron,
        (
            Mistake(
                "(1 - y**2)",
                "(1 - np.tanh(y) ** 2)",
                "y is tanh(z) already, so the slope there is 1 - y².",
            ),
            Mistake(
                "dy * (1 - y**2)", "1 - y**2", "dy is forgotten: the chain rule multiplies by it."
            ),
            Mistake("dy * (1 - y**2)", "dy", "that is as if y = z: what is the slope of tanh?"),
            Mistake(
                "return dz * w, dz * x, dz",
                "return dz * x, dz * w, dz",
                "dx and dw are exchanged: a change of x is multiplied by w.",
            ),
            Mistake("(1 - y**2)", "(1 - y)", "the slope of tanh has y squared in it."),
            Mistake(
                "(1 - y**2)",
                "(1 + y**2)",
                "the sign is wrong: tanh is steepest at 0, where y is 0.",
            ),
        ),
        ("dx", "dw", "db"),
    ),
    Exercise(
        "2.2",
        "numerical_gradient",
        _functions,
        (
            Mistake(
                "(f(up) - f(down)) / (2 * h)",
                "(f(up) - f(x)) / h",
                "that is one side only: its error is of the order h, not h².",
            ),
            Mistake("/ (2 * h)", "/ h", "off by a factor of 2: how far apart are the two points?"),
            Mistake(
                "(f(up) - f(down))",
                "(f(down) - f(up))",
                "the sign is wrong: which point comes first?",
            ),
            Mistake(
                "up, down = x.copy(), x.copy()",
                "(up, down) = (x.copy(), x.copy()) if not any(place) else (up, down)",
                "the elements that were moved before are still moved: begin with x anew each time.",
            ),
            Mistake(
                "up, down = x.copy(), x.copy()",
                "h = 1e-5; up, down = x.copy(), x.copy()",
                "take the two points of the formula, x + h and x - h, with the h that is handed"
                " in: the check has large ones, to see the difference.",
            ),
            Mistake(
                "np.ndindex(x.shape)",
                "range(len(x))",
                "x may have any number of axes: this moves a whole row of a matrix at once."
                " np.ndindex goes through all places.",
            ),
        ),
    ),
    Exercise(
        "2.3",
        "linear_forward",
        _linear,
        (
            Mistake("x @ weight + bias, ", "x @ weight, ", "the bias is missing."),
            Mistake(
                "x @ weight + bias, (x",
                "x @ weight + bias.sum(), (x",
                "each output has a bias of its own: add the vector, which NumPy does for each row.",
            ),
            Mistake(
                ", (x, weight)",
                ", (weight, x)",
                "the cache is (x, weight), in this order: backward relies on it.",
            ),
        ),
        ("y", "cache"),
    ),
    Exercise(
        "2.4",
        "linear_backward",
        _linear_back,
        (
            Mistake(
                "dy.sum(axis=0)",
                "dy.mean(axis=0)",
                "off by a factor of N: the rows' ways add up, so it is a sum and no mean.",
            ),
            Mistake(
                "x.T @ dy",
                "x.T @ dy / len(x)",
                "off by a factor of N: the rows' ways add up, so it is a sum and no mean.",
            ),
            Mistake(
                "dy.sum(axis=0)",
                "dy.sum(axis=1)",
                "the bias has one number for each output: sum over the rows, axis 0.",
            ),
            Mistake(
                "dy @ weight.T",
                "np.ones_like(dy) @ weight.T",
                "dy is forgotten: the chain rule multiplies by it.",
            ),
        ),
        ("dx", "dweight", "dbias"),
    ),
    Exercise(
        "2.5",
        "branch_backward",
        _branch,
        (
            Mistake(
                "dx = dy + da",
                "dx = da",
                "x goes two ways: through the branch and directly into the sum. What comes back"
                " directly is missing.",
            ),
            Mistake(
                "dh * (a > 0)",
                "dh",
                "where relu gave 0, nothing passes backwards either: its slope there is 0.",
            ),
            Mistake("dh * (a > 0)", "dh * h", "relu's slope is 1 where it passes, not h."),
            Mistake(
                "dw2 = h.T @ dy",
                "dw2 = a.T @ dy",
                "w2 is multiplied with h, what relu has let through, not with a.",
            ),
            Mistake(
                "dh * (a > 0)",
                "np.maximum(dh, 0)",
                "what decides is whether a was above 0, not whether dh is.",
            ),
            Mistake("dh * (a > 0)", "dh * np.sign(a)", "relu's slope below 0 is 0, not -1."),
        ),
        ("dx", "dw1", "dw2"),
    ),
)
