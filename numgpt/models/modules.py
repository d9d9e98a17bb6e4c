"""What has parameters: Linear, Embedding, LayerNorm, RMSNorm, Unembedding, ScoreHead.

A module knows the names of its parameters and calls the functions of layers on them:

    y, cache = module.forward(x)              dx = module.backward(dy, cache, g)

(Unembedding has such a pair for logits, and for log-probabilities.) `backward` returns the gradient
at the input, and adds those of the parameters to the gradients `g` under their names. A frozen
parameter has no place in `g`: its gradient is not computed. To lessons/gpt.py this page adds that,
adapters, weights side by side, and hooks on x̂.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

from numgpt import layers
from numgpt.layers.cross_entropy import LogProbsCache
from numgpt.layers.embedding import EmbeddingCache
from numgpt.layers.layernorm import LayerNormCache
from numgpt.layers.lora import LoRACache
from numgpt.layers.rmsnorm import RMSNormCache
from numgpt.models.hooks import NO_HOOKS, Hooks
from numgpt.models.lora import Adapter, LoRA
from numgpt.models.parameters import Gradients, Parameters
from numgpt.runtime import NOWHERE, add_into, matmul

SCORE = "score.weight"  # the one parameter of a score head
Saved = Callable[[], np.ndarray]  # gives what a layer has read: kept, or recomputed


class ProjectionCache(NamedTuple):
    x: Saved
    loras: tuple[LoRACache, ...]


class Linear:
    """y = x W + b, and where an adapter is active y = x W + b + s · x Aᵀ Bᵀ.

    Of several names, their products stand side by side: W = [W₁ W₂ …], b = [b₁ b₂ …]. Transposed
    matrices that lie one after another in memory are one product: few large products read weights
    faster than many small ones.
    """

    def __init__(self, parameters: Parameters, *names: str, transposed: bool = False):
        """The parameters of each name are name.weight, (I, O) or transposed (O, I), and name.bias
        (O,), which all of the names have or none."""
        self.names = names
        self.transposed = transposed
        self.weights = [f"{name}.weight" for name in names]
        self.biases = [f"{name}.bias" for name in names if f"{name}.bias" in parameters]
        self.weight = parameters.beside(self.weights, transposed)  # (I, O)
        self._biases = [parameters[name] for name in self.biases]
        inputs, self.width = self.weight.shape
        edges = np.cumsum([0, *(parameters[name].size // inputs for name in self.weights)])
        self.columns = [slice(*pair) for pair in pairwise(edges.tolist())]  # of y, a name each
        self.loras: list[LoRA] = []

    @property
    def bias(self) -> np.ndarray | None:
        """(O,)."""
        if len(self._biases) > 1:
            return np.concatenate(self._biases)
        return self._biases[0] if self._biases else None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(I, O) by name."""
        inputs, places = self.weight.shape[0], zip(self.names, self.columns, strict=True)
        return {name: (inputs, columns.stop - columns.start) for name, columns in places}

    def adapt(self, adapter: Adapter | None) -> None:
        """Compute with this adapter from now on, where it is for any of the names."""
        adapted = set() if adapter is None else set(adapter.names())
        self.loras = [
            LoRA(adapter, name, columns)
            for name, columns in zip(self.names, self.columns, strict=True)
            if adapter is not None and name in adapted
        ]

    def matrix(self) -> np.ndarray:
        """W (I, O), and what an adapter adds to it: a new array."""
        whole = np.array(self.weight)
        for lora in self.loras:
            whole[:, lora.columns] += lora.delta().T
        return whole

    def forward(
        self, x: np.ndarray, saved: Saved | None = None, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, ProjectionCache]:
        """x (N, I) -> y (N, O), cache.  `saved` gives x to the backward: without it x is kept."""
        y, of_linear = layers.linear_forward(x, self.weight, self.bias)
        caches, read = [], of_linear.x
        if read is not None and read.nbytes < x.nbytes and not self.loras:
            rounded = read  # kept as it is, in half the memory of x
            saved = lambda: rounded  # noqa: E731
        for lora in self.loras:
            term, cache = lora.forward(x, rng)
            add_into(y[:, lora.columns], term)
            caches.append(cache)
        return y, ProjectionCache(saved or (lambda: x), tuple(caches))

    def backward(self, dy: np.ndarray, cache: ProjectionCache, g: Gradients) -> np.ndarray:
        """dy (N, O) -> dx (N, I)."""
        dweight = g.beside(self.weights, self.columns, self.transposed)
        dbias = g.beside(self.biases, self.columns)
        x = cache.x() if dweight.needed or any(lora.trains(g) for lora in self.loras) else None
        dx, _, _ = layers.linear_backward(dy, layers.LinearCache(x, self.weight), dweight, dbias)
        for lora, of_lora in zip(self.loras, cache.loras, strict=True):
            add_into(dx, lora.backward(dy[:, lora.columns], x, of_lora, g))
        return dx


class Embedding:
    """y_n = weight[ids_n]."""

    def __init__(self, parameters: Parameters, name: str):
        self.name = name
        self.weight = parameters[name]

    def forward(self, ids: np.ndarray) -> tuple[np.ndarray, EmbeddingCache]:
        """ids (N,) -> y (N, C), cache."""
        return layers.embedding_forward(ids, self.weight)

    def backward(self, dy: np.ndarray, cache: EmbeddingCache, g: Gradients) -> None:
        """dy (N, C).  Ids have no gradient."""
        layers.embedding_backward(dy, cache, g.accumulator(self.name))


class Unembedding:
    """logits = hidden Wᵀ, and what is computed from them.  W (V, C) is the embedding's table
    ("tied"), whose gradient then has this contribution beside the embedding's, or one of its own.
    """

    def __init__(self, parameters: Parameters, name: str):
        self.name = name
        self.weight = parameters[name]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """hidden (N, C) -> (N, V)."""
        return matmul(hidden, self.weight.T)

    def logits_backward(self, dlogits: np.ndarray, hidden: np.ndarray, g: Gradients) -> np.ndarray:
        """dlogits (N, V) -> dhidden (N, C)."""
        g.accumulator(self.name).add_outer(dlogits, hidden)
        return matmul(dlogits, self.weight)

    def cross_entropy(
        self,
        hidden: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        g: Gradients,
        statistics: layers.TokenStatistics | None = None,
    ) -> tuple[float, np.ndarray]:
        """Σ weights · (-log p[target]), forward and backward in one.  hidden (N, C), targets and
        weights (N,) -> loss, dhidden (N, C); statistics are added to."""
        dweight = g.accumulator(self.name)
        loss, dhidden, _ = layers.linear_cross_entropy(
            hidden, self.weight, targets, weights, dweight, statistics=statistics
        )
        return loss, dhidden

    def log_probs(
        self,
        hidden: np.ndarray,
        targets: np.ndarray,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> tuple[np.ndarray, LogProbsCache]:
        """log p[target], 0 where it is -100.  hidden (N, C), targets (N,) -> logp (N,), cache,
        which has the entropies where they are asked for."""
        return layers.linear_log_probs_forward(hidden, self.weight, targets, temperature, entropy)

    def log_probs_backward(
        self,
        dlogp: np.ndarray,
        cache: LogProbsCache,
        g: Gradients,
        dentropy: np.ndarray | None = None,
    ) -> np.ndarray:
        """dlogp and dentropy (N,) -> dhidden (N, C)."""
        dweight = g.accumulator(self.name)
        return layers.linear_log_probs_backward(dlogp, cache, dweight, dentropy)[0]


class ScoreHead:
    """s_n = w · hidden_n: one number a position, a reward or a value.  w (1, C).

    ds by the two: dhidden_n = ds_n w, dw = Σ_n ds_n hidden_n.
    """

    def __init__(self, parameters: Parameters):
        self.name = SCORE
        self.weight = parameters[self.name]

    def scores(self, hidden: np.ndarray) -> np.ndarray:
        """hidden (…, C) -> (…)."""
        return hidden @ self.weight[0]

    def backward(self, dscores: np.ndarray, hidden: np.ndarray, g: Gradients) -> np.ndarray:
        """dscores (N,), hidden (N, C) -> dhidden (N, C)."""
        g.accumulator(self.name).add_outer(dscores[:, None], hidden)
        return dscores[:, None] * self.weight


class NormCache(NamedTuple):
    computed: LayerNormCache | RMSNormCache  # what the derivative is taken at
    seen: LayerNormCache | RMSNormCache  # the same, or with the x̂ that a hook put in its place


class Norm:
    """weight · x̂ + bias, with x̂ a normalised row: what the two norms below share."""

    functions: ClassVar[tuple[Callable, Callable, Callable]]  # forward, output from x̂, backward
    kinds: ClassVar[tuple[str, ...]]  # of parameters

    def __init__(self, parameters: Parameters, name: str, eps: float):
        self.parameter_names = [f"{name}.{kind}" for kind in self.kinds]
        self.arrays = [parameters[name] for name in self.parameter_names]
        self.weight, self.eps = self.arrays[0], eps

    def forward(self, x: np.ndarray, hook: Hooks = NO_HOOKS) -> tuple[np.ndarray, NormCache]:
        """x (N, C) -> y (N, C), cache."""
        forward, output, _ = self.functions
        y, cache = forward(x, *self.arrays, self.eps)
        x_hat = hook.rows("hook_normalized", cache.x_hat)
        if x_hat is cache.x_hat:
            return y, NormCache(cache, cache)
        seen = cache._replace(x_hat=x_hat)
        return output(seen), NormCache(cache, seen)

    @property
    def bias(self) -> np.ndarray | None:
        """(C,)."""
        return self.arrays[1] if len(self.arrays) > 1 else None

    def output(self, cache: NormCache) -> np.ndarray:
        """y (N, C), recomputed from x̂."""
        return self.functions[1](cache.seen)

    def backward(
        self, dy: np.ndarray, cache: NormCache, g: Gradients, hook: Hooks = NO_HOOKS
    ) -> np.ndarray:
        """dy (N, C) -> dx (N, C)."""
        backward = self.functions[2]
        dx, *_ = backward(dy, cache.seen, *(g.accumulator(name) for name in self.parameter_names))
        if cache.seen is cache.computed and not hook.has("hook_normalized"):
            return dx
        dx_hat = dy * self.weight
        replaced = hook.rows("hook_normalized", dx_hat)
        if cache.seen is cache.computed and replaced is dx_hat:
            return dx  # where hooks only look, no bit changes
        of_x_hat = cache.computed._replace(weight=np.ones_like(self.weight))
        return backward(replaced, of_x_hat, *(NOWHERE for _ in self.parameter_names))[0]


class LayerNorm(Norm):
    """y = weight · x̂ + bias, x̂ = (x - mean(x)) / sqrt(var(x) + eps)."""

    functions = layers.layernorm_forward, layers.layernorm_output, layers.layernorm_backward
    kinds = ("weight", "bias")


class RMSNorm(Norm):
    """y = weight · x̂, x̂ = x / sqrt(mean(x²) + eps)."""

    functions = layers.rmsnorm_forward, layers.rmsnorm_output, layers.rmsnorm_backward
    kinds = ("weight",)
