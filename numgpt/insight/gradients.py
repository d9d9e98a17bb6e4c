"""Which tokens of the prompt a logit depends on, by gradients at their embeddings e_i.

    saliency                ‖∂f/∂e_i‖
    input x gradient        e_i · ∂f/∂e_i
    integrated gradients    (e_i - e⁰_i) · ∫₀¹ ∂f/∂e_i(e⁰ + α (e - e⁰)) dα

f is the logit of a token, or its difference to another's (Simonyan et al. 2013, arXiv:1312.6034;
Shrikumar et al. 2016, arXiv:1605.01713; Sundararajan et al. 2017, arXiv:1703.01365). The integrated
gradients are complete: their sum over all tokens is f(e) - f(e⁰), as ∫ ∇f · dr along any path is
the difference of its ends. The integral is computed by Gauss-Legendre quadrature; how far the sum
is off tells whether there were steps enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numgpt.insight.targets import Target, target, token_id
from numgpt.messages import shown
from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel

EMBEDDING = "hook_embed"
AT_ONCE = 16  # steps of the integral side by side


class IntegratedGradients(NamedTuple):
    """Of each token, and the check that they are complete."""

    attributions: np.ndarray  # (T,)
    difference: float  # f(e) - f(e⁰)

    @property
    def error(self) -> float:
        """Σ attributions - (f(e) - f(e⁰)): 0, but for the quadrature and rounding."""
        return float(self.attributions.sum()) - self.difference


def saliency(
    model: LanguageModel, ids: Ids, token: int, against: int | None = None, position: int = -1
) -> np.ndarray:
    """The norm of each token's gradient.  ids (T,) -> (T,)."""
    _, gradient = _at_embedding(model, target(model, ids, token, against, position))
    return np.linalg.norm(gradient, axis=-1)


def input_x_gradient(
    model: LanguageModel, ids: Ids, token: int, against: int | None = None, position: int = -1
) -> np.ndarray:
    """Each token's embedding times its gradient.  ids (T,) -> (T,)."""
    embedding, gradient = _at_embedding(model, target(model, ids, token, against, position))
    return np.vecdot(embedding, gradient)


def integrated_gradients(
    model: LanguageModel,
    ids: Ids,
    token: int,
    against: int | None = None,
    position: int = -1,
    baseline: int | None = None,
    steps: int = 50,
) -> IntegratedGradients:
    """Integrated gradients along the straight way from a baseline e⁰: embeddings of 0, or those of
    the token `baseline` at each place.  ids (T,); positions stay as they are."""
    if not hasattr(steps, "__index__") or not 1 <= steps <= 10_000:
        raise ValueError(f"steps={shown(steps)}: expected a whole number from 1 to 10,000")
    of = target(model, ids, token, against, position)
    logits, cache = model.run_with_cache(of.ids, EMBEDDING)
    e = cache[EMBEDDING][0].astype(np.float64)  # (T, C)
    start = np.zeros_like(e)
    if baseline is not None:
        places = np.full_like(of.ids, token_id(model, "baseline", baseline))
        start = model.run_with_cache(places, EMBEDDING)[1][EMBEDDING][0].astype(np.float64)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    points, weights = (points + 1) / 2, weights / 2
    mean_gradient = np.zeros_like(e)
    for first in range(0, steps, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        path = (start + points[part, None, None] * (e - start)).astype(logits.dtype)
        copies = np.repeat(of.ids, len(path), axis=0)
        hooks = {EMBEDDING: lambda _, path=path: path}
        found = model.run_with_gradients(copies, of.gradient, EMBEDDING, hooks)[2][EMBEDDING]
        mean_gradient += np.tensordot(weights[part], found.astype(np.float64), axes=1)
    ends = np.stack([start, e]).astype(logits.dtype)
    of_ends = model.run_with_hooks(np.repeat(of.ids, 2, axis=0), {EMBEDDING: lambda _: ends})
    at_start, at_end = map(float, of.value(of_ends))
    return IntegratedGradients(np.vecdot(e - start, mean_gradient), at_end - at_start)


def _at_embedding(model: LanguageModel, of: Target) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (T, C), and f's gradient by them."""
    _, activations, gradients = model.run_with_gradients(of.ids, of.gradient, EMBEDDING)
    return activations[EMBEDDING][0], gradients[EMBEDDING][0]
