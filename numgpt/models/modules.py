"""What has parameters: Linear, Embedding, LayerNorm, RMSNorm.

A module knows its parameters' names. It calls the layer's functions on the arrays, and has the
gradients added to the sums of those names; what is frozen has none. Its `forward` gives y, and what
`backward` needs beside dy, as the functions in layers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from numgpt.layers import (
    embedding_backward,
    embedding_forward,
    layernorm_backward,
    layernorm_forward,
    layernorm_output,
    linear_backward,
    linear_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rmsnorm_output,
)
from numgpt.layers.embedding import EmbeddingCache
from numgpt.layers.layernorm import LayerNormCache
from numgpt.layers.linear import LinearCache
from numgpt.layers.lora import LoRACache
from numgpt.layers.rmsnorm import RMSNormCache
from numgpt.models.hooks import NO_HOOKS, Hooks
from numgpt.models.lora import Adapter, LoRA
from numgpt.models.parameters import Gradients, Parameters
from numgpt.runtime import NOWHERE, Accumulator, add_into, empty

Input = Callable[[], np.ndarray]  # gives what a layer has read, kept or computed again


class Product(NamedTuple):
    """A matrix that the input is multiplied by: one parameter, or several side by side."""

    columns: slice  # of y, that it makes
    weight: np.ndarray  # (I, O)
    bias: np.ndarray | None  # (O,)
    weights: tuple[str, ...]  # the parameters' names
    biases: tuple[str, ...]


class ProjectionCache(NamedTuple):
    x: Input  # what was read
    adapters: tuple[LoRACache, ...]


class Linear:
    """y = x W + b, and what an adapter adds to it.

    Of several names, x's products stand side by side, y = (x W₁ + b₁, x W₂ + b₂, …). They are one
    product where the weights lie one after another in memory: few large products read weights
    faster than many small ones.
    """

    def __init__(self, parameters: Parameters, *names: str, transposed: bool = False):
        """The parameters of each name are name.weight, (I, O) or transposed (O, I), and name.bias
        (O,), if there is one."""
        self.names = names
        self.transposed = transposed
        self.adapters: list[LoRA] = []
        self.parts: list[Product] = []
        start = 0
        for name in names:
            weight = parameters[f"{name}.weight"]
            weight = weight.T if transposed else weight
            bias = parameters.get(f"{name}.bias")
            columns = slice(start, start + weight.shape[1])
            biases = () if bias is None else (f"{name}.bias",)
            self.parts.append(Product(columns, weight, bias, (f"{name}.weight",), biases))
            start = columns.stop
        self.width = start  # of y
        whole = self.parts[0] if len(self.parts) == 1 else self._joined(parameters)
        self.products = self.parts if whole is None else [whole]

    def _joined(self, parameters: Parameters) -> Product | None:
        """All parts as one, where they lie so."""
        weights = tuple(name for part in self.parts for name in part.weights)
        biases = tuple(name for part in self.parts for name in part.biases)
        if not self.transposed or len(biases) not in (0, len(weights)):
            return None
        weight = parameters.joined(*weights)
        bias = parameters.joined(*biases) if biases else None
        if weight is None or (biases and bias is None):
            return None
        return Product(slice(0, self.width), weight.T, bias, weights, biases)

    def adapt(self, adapter: Adapter | None) -> None:
        """Compute with this adapter from now on, where it is for any of the parts."""
        adapted = set() if adapter is None else set(adapter.names())
        self.adapters = [
            LoRA(adapter, name, part.columns)
            for name, part in zip(self.names, self.parts, strict=True)
            if adapter is not None and name in adapted
        ]

    def matrix(self) -> np.ndarray:
        """W (I, O), all parts side by side, with what an adapter adds: a new array."""
        whole = np.concatenate([part.weight for part in self.parts], axis=1)
        for lora in self.adapters:
            whole[:, lora.columns] += lora.adapter.delta(lora.name).T
        return whole

    def forward(
        self, x: np.ndarray, again: Input | None = None, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, ProjectionCache]:
        """x (N, I) -> y (N, O), cache.  `again` gives x to the backward: without it x is kept."""
        if len(self.products) == 1:
            y, _ = linear_forward(x, self.products[0].weight, self.products[0].bias)
        else:
            y = empty((len(x), self.width), x.dtype)
            for product in self.products:
                y[:, product.columns], _ = linear_forward(x, product.weight, product.bias)
        caches = []
        for adapter in self.adapters:
            term, cache = adapter.forward(x, rng)
            add_into(y[:, adapter.columns], term)
            caches.append(cache)
        return y, ProjectionCache(again or (lambda: x), tuple(caches))

    def backward(self, dy: np.ndarray, cache: ProjectionCache, g: Gradients) -> np.ndarray:
        """dy (N, O) -> dx (N, I).  x is asked for only where a weight trains."""
        products = self._with_sums(self.products, g)
        if products is None:  # of what lies side by side, some is frozen
            products = self._with_sums(self.parts, g) or []
        weights = [name for part in self.parts for name in part.weights]
        weights += [name for adapter in self.adapters for name in adapter.weights]
        read = cache.x() if any(name in g for name in weights) else None
        dx: np.ndarray | None = None
        for product, dweight, dbias in products:
            of_layer = LinearCache(read, product.weight, product.bias is not None)
            part, _, _ = linear_backward(dy[:, product.columns], of_layer, dweight, dbias)
            if dx is None:
                dx = part
            else:
                add_into(dx, part)
        assert dx is not None  # there is a product
        for adapter, of_adapter in zip(self.adapters, cache.adapters, strict=True):
            add_into(dx, adapter.backward(dy[:, adapter.columns], read, of_adapter, g))
        return dx

    def _with_sums(
        self, products: list[Product], g: Gradients
    ) -> list[tuple[Product, Accumulator, Accumulator]] | None:
        """Each product with where the gradients of its weight and bias go; None where the
        gradients of one product's parameters don't lie together."""
        found = []
        for product in products:
            weight, bias = g.joined(product.weights), g.joined(product.biases)
            if weight is None or bias is None:
                return None
            found.append((product, weight.T if self.transposed else weight, bias))
        return found


class Embedding:
    """y_n = weight[ids_n]."""

    def __init__(self, parameters: Parameters, name: str):
        self.name = name
        self.weight = parameters[name]

    def forward(self, ids: np.ndarray) -> tuple[np.ndarray, EmbeddingCache]:
        """ids (N,) -> y (N, C), cache."""
        return embedding_forward(ids, self.weight)

    def backward(self, dy: np.ndarray, cache: EmbeddingCache, g: Gradients) -> None:
        """dy (N, C).  Ids have no gradient."""
        embedding_backward(dy, cache, g.accumulator(self.name))


class LayerNorm:
    """y = weight · x̂ + bias."""

    def __init__(self, parameters: Parameters, name: str, eps: float):
        self.name, self.eps = name, eps
        self.weight, self.bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]

    def forward(self, x: np.ndarray, hook: Hooks = NO_HOOKS) -> tuple[np.ndarray, LayerNormCache]:
        """x (N, C) -> y (N, C), cache."""
        y, cache = layernorm_forward(x, self.weight, self.bias, self.eps)
        return _hooked(y, cache, layernorm_output, hook)

    def backward(
        self, dy: np.ndarray, cache: LayerNormCache, g: Gradients, hook: Hooks = NO_HOOKS
    ) -> np.ndarray:
        """dy (N, C) -> dx (N, C)."""
        sums = g.accumulator(f"{self.name}.weight"), g.accumulator(f"{self.name}.bias")
        dx, _, _ = layernorm_backward(dy, cache, *sums)
        if (dx_hat := _hooked_gradient(dy, cache, hook)) is not None:
            alone = cache._replace(weight=np.ones_like(self.weight))  # dx_hat has it already
            dx, _, _ = layernorm_backward(dx_hat, alone, NOWHERE, NOWHERE)
        return dx

    def summand(self, x: np.ndarray, rstd: np.ndarray) -> np.ndarray:
        """What a summand x (…, C) of the input adds to y, where the whole input has this rstd: with
        the scale held fast, the norm is linear. The bias is another summand of y."""
        return self.weight * ((x - x.mean(axis=-1, keepdims=True)) * rstd)


class RMSNorm:
    """y = weight · x̂."""

    def __init__(self, parameters: Parameters, name: str, eps: float):
        self.name, self.eps = name, eps
        self.weight, self.bias = parameters[f"{name}.weight"], None

    def forward(self, x: np.ndarray, hook: Hooks = NO_HOOKS) -> tuple[np.ndarray, RMSNormCache]:
        """x (N, C) -> y (N, C), cache."""
        y, cache = rmsnorm_forward(x, self.weight, self.eps)
        return _hooked(y, cache, rmsnorm_output, hook)

    def backward(
        self, dy: np.ndarray, cache: RMSNormCache, g: Gradients, hook: Hooks = NO_HOOKS
    ) -> np.ndarray:
        """dy (N, C) -> dx (N, C)."""
        dx, _ = rmsnorm_backward(dy, cache, g.accumulator(f"{self.name}.weight"))
        if (dx_hat := _hooked_gradient(dy, cache, hook)) is not None:
            alone = cache._replace(weight=np.ones_like(self.weight))  # dx_hat has it already
            dx, _ = rmsnorm_backward(dx_hat, alone, NOWHERE)
        return dx

    def summand(self, x: np.ndarray, rstd: np.ndarray) -> np.ndarray:
        """What a summand x (…, C) of the input adds to y, where the whole input has this rstd: with
        the scale held fast, the norm is linear."""
        return self.weight * (x * rstd)


NormCache = TypeVar("NormCache", LayerNormCache, RMSNormCache)


def _hooked(
    y: np.ndarray, cache: NormCache, output: Callable[[NormCache], np.ndarray], hook: Hooks
) -> tuple[np.ndarray, NormCache]:
    """y and cache of a norm, after a hook on x̂."""
    x_hat = hook.rows("hook_normalized", cache.x_hat)
    if x_hat is cache.x_hat:
        return y, cache
    cache = cache._replace(x_hat=x_hat)
    return output(cache), cache


def _hooked_gradient(dy: np.ndarray, cache: NormCache, hook: Hooks) -> np.ndarray | None:
    """What a hook puts in the place of the gradient at x̂, if it does."""
    if not hook.wants("hook_normalized"):
        return None
    dx_hat = dy * cache.weight
    replaced = hook.rows("hook_normalized", dx_hat)
    return None if replaced is dx_hat else replaced
