"""AdamW: Adam (Kingma & Ba 2014, arXiv:1412.6980) with decoupled weight decay (Loshchilov & Hutter
2017, arXiv:1711.05101).

    m ← β₁ m + (1 - β₁) g              m̂ = m / (1 - β₁ᵗ)      (the moments start at 0)
    v ← β₂ v + (1 - β₂) g²             v̂ = v / (1 - β₂ᵗ)
    w ← w - lr · λ · w - lr · m̂ / (√v̂ + eps)           t = 1 in the first step, 2 in the second, …

As m starts at 0, after t steps it is (1 - β₁) Σ_s β₁^(t-s) g_s, whose weights sum up to 1 - β₁ᵗ: of
gradients with the mean E[g] it has the mean (1 - β₁ᵗ) E[g], too small at first. m̂ has E[g] itself,
and v̂ likewise E[g²].

Decay λ applies to matrices (and embeddings) only, not to biases and the gains of layer norms.
Before the step, the gradients can be clipped by their global norm (Pascanu et al. 2013,
arXiv:1211.5063): g ← g · min(1, clip / (‖g‖ + 10⁻⁶)), the 10⁻⁶ as in PyTorch, against a norm of 0.
"""

from __future__ import annotations

import math

import numpy as np

from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.models.parameters import size_of
from numgpt.options import OptionError, number, require
from numgpt.runtime import over_row_blocks

SMALLEST_SQUARES = 1e-30  # a sum of squares below it may have lost some of them to underflow


class AdamW:
    """Updates `model.parameters` from `model.gradients`."""

    def __init__(
        self,
        model: LanguageModel,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        """Raises ValueError for a hyperparameter out of its range."""
        self.model = model
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self._check()
        self.steps = 0
        self.layout = model.trained
        self._adapter = model.adapter
        self.m = np.zeros(size_of(self.layout), model.parameters.dtype)
        self.v = np.zeros_like(self.m)

    def __repr__(self) -> str:
        return (
            f"<AdamW: lr={self.lr:g}, betas={self.betas}, eps={self.eps:g},"
            f" weight_decay={self.weight_decay:g}, after {self.steps} steps on {self.model!r}>"
        )

    def step(self, grad_clip: float | None = None) -> float:
        """One update; returns the global norm of the gradients, before clipping (0: no clipping).

        A norm that is not finite leaves weights and moments as they are, and is returned for the
        caller to see. Raises RuntimeError where no gradients have been computed.
        """
        if self.model.trained != self.layout or self.model.adapter is not self._adapter:
            raise RuntimeError(
                "other parameters train now than when this optimizer was made: make a new one"
            )
        if self.model.gradients is None:
            raise RuntimeError("no gradients: call model.loss_and_grads before optimizer.step")
        self._check()
        if grad_clip is not None and not grad_clip >= 0:
            raise OptionError("{grad_clip}: expected 0 (no clipping) or more", grad_clip=grad_clip)
        g = self.model.gradients.flat
        norm = gradient_norm(g)
        if not math.isfinite(norm):
            return norm
        self.steps += 1
        clip = min(1.0, grad_clip / (norm + 1e-6)) if grad_clip else 1.0
        for part, w, axes in self.model.pieces(self.layout):
            decay = self.weight_decay if axes >= 2 else 0.0
            self._update(g[part], w, self.m[part], self.v[part], clip, decay)
        return norm

    def _check(self) -> None:
        """Raises ValueError for a hyperparameter out of its range."""
        require(self, number(least=0), "lr", "weight_decay")
        require(self, number(above=0), "eps")
        two = isinstance(self.betas, (tuple, list)) and len(self.betas) == 2
        if not two or not all(map(number(least=0, below=1, numpys=True).fits, self.betas)):
            raise ValueError(f"betas={shown(self.betas)}: expected two numbers in [0, 1)")

    def _update(
        self, g: np.ndarray, w: np.ndarray, m: np.ndarray, v: np.ndarray, clip: float, decay: float
    ) -> None:
        beta_1, beta_2 = self.betas
        # m̂ and v̂ differ from m and v by one factor each: dividing the whole arrays would be two
        # more walks through memory.
        step_size = self.lr / (1 - beta_1**self.steps)
        root_correction = 1 / math.sqrt(1 - beta_2**self.steps)
        root_share = math.sqrt(1 - beta_2) * clip

        def rows(g: np.ndarray, w: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
            m *= beta_1
            m += (1 - beta_1) * clip * g
            scaled = root_share * g  # before it is squared: g² may be too large for a number
            v *= beta_2
            v += scaled * scaled
            if decay:
                w *= 1 - self.lr * decay
            w -= step_size * (m / (root_correction * np.sqrt(v) + self.eps))

        over_row_blocks(rows, g, w, m, v)


def gradient_norm(flat: np.ndarray) -> float:
    """‖g‖₂, summed up in float64 from blocks."""
    with np.errstate(over="ignore"):
        squares = sum(over_row_blocks(lambda g: float(g @ g), flat))
    if not SMALLEST_SQUARES < squares < math.inf:  # some were too small or too large for float32
        squares = sum(over_row_blocks(lambda g: float(np.square(g, dtype=float).sum()), flat))
    return math.sqrt(squares)
