"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    x = wte[ids] + wpe[positions]
    for each block:     x += attention(layernorm(x))        x += mlp(layernorm(x))
    logits = layernorm(x) wteᵀ

Blocks normalise before each branch and leave the residual stream x alone ("pre-norm"), so backward,
the gradient dx runs down the same stream unchanged and collects what each branch adds. Names,
shapes and initialisation are those of OpenAI's release.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from numgpt.layers import (
    LinearCache,
    attention_backward,
    attention_forward,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    gelu_erf_backward,
    gelu_erf_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    layernorm_output,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
)
from numgpt.messages import shown
from numgpt.models.checks import require_booleans, require_ids, require_number, require_whole
from numgpt.models.heads import merge_heads, positions_of, split_heads
from numgpt.models.language_model import LanguageModel
from numgpt.models.parameters import Parameters
from numgpt.runtime import add_into, empty

# By Hugging Face's names for them. The cache of each is an input that gives its output again: x, or
# for ReLU y itself.
ACTIVATIONS = {
    "gelu_new": (gelu_tanh_forward, gelu_tanh_backward),
    "gelu_pytorch_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "gelu": (gelu_erf_forward, gelu_erf_backward),
    "relu": (relu_forward, relu_backward),
}


@dataclasses.dataclass
class GPTConfig:
    """The fields of a Hugging Face GPT-2 config.json that change the numbers, with the same
    defaults."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257
    n_inner: int | None = None  # feed-forward width; None is 4 · n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None  # ends a generated sequence

    def validate(self) -> None:
        """Raises ValueError naming the field that can't be."""
        require_whole(self, "n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        require_whole(self, "n_inner", optional=True)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if str(self.activation_function) not in ACTIVATIONS:
            raise ValueError(
                f"activation_function={shown(self.activation_function)} is not supported:"
                f" choose one of {', '.join(ACTIVATIONS)}"
            )
        require_number(self, "embd_pdrop", "attn_pdrop", "resid_pdrop", least=0, below=1)
        require_number(self, "layer_norm_epsilon", "initializer_range")
        require_booleans(
            self, "tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"
        )
        require_ids(self, "bos_token_id", "eos_token_id")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def attention_scale(self, layer: int) -> float:
        """What q · k is multiplied by in this layer."""
        scale = 1 / math.sqrt(self.head_size) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def set_dropout(self, p: float) -> None:
        """The same dropout everywhere."""
        self.embd_pdrop = self.attn_pdrop = self.resid_pdrop = p


class GPT(LanguageModel):
    """GPT-2: `model(ids)` gives logits, `loss_and_grads` the hand-derived gradients."""

    config_class = GPTConfig
    context_field = "n_positions"

    @staticmethod
    def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
        width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, width),
            "mlp.c_proj.bias": (width,),
        }
        shapes = {"wte": (config.vocab_size, width), "wpe": (config.n_positions, width)}
        for layer in range(config.n_layer):
            shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
        if not config.tie_word_embeddings:
            shapes["lm_head"] = (config.vocab_size, width)
        return shapes

    @property
    def head(self) -> str:
        return "wte" if self.config.tie_word_embeddings else "lm_head"

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.config.n_layer, self.config.n_head, self.config.head_size

    def initial_deviation(self, name: str) -> float:
        """Matrices that write to the residual stream begin 1/√(2 n_layer) as large as others."""
        residual = name.endswith("c_proj.weight")
        scale = math.sqrt(2 * self.config.n_layer) if residual else 1
        return self.config.initializer_range / scale

    def forward(
        self,
        ids: np.ndarray,
        rng: np.random.Generator | None = None,
        kv_cache: Any = None,
        key_mask: np.ndarray | None = None,
        keep_caches: bool = False,
        last_only: bool = False,
    ) -> tuple[np.ndarray, Any]:
        p, config = self.parameters, self.config
        positions = positions_of(ids, 0 if kv_cache is None else kv_cache.length, key_mask)
        x, wte = embedding_forward(ids.ravel(), p["wte"])  # (B, T) -> (N, C)
        position, wpe = embedding_forward(positions.ravel(), p["wpe"])
        add_into(x, position)
        x, dropout = dropout_forward(x, config.embd_pdrop, rng)
        blocks = []
        for layer in range(config.n_layer):
            last = last_only and layer == config.n_layer - 1
            x, block = self._block_forward(x, layer, len(ids), rng, kv_cache, key_mask, last)
            if keep_caches:
                blocks.append(block)
        if kv_cache is not None:
            kv_cache.advance(ids.shape[1])
        y, ln_f = layernorm_forward(x, p["ln_f.weight"], p["ln_f.bias"], config.layer_norm_epsilon)
        return y, (wte, wpe, dropout, blocks, ln_f, len(ids))

    def backward(
        self, dx: np.ndarray, caches: Any, gradients: Parameters, accumulate: bool
    ) -> None:
        g, (wte, wpe, dropout, blocks, ln_f, batch) = gradients, caches
        dx, _, _ = layernorm_backward(dx, ln_f, g["ln_f.weight"], g["ln_f.bias"], accumulate)
        for layer in reversed(range(self.config.n_layer)):
            self._block_backward(dx, blocks.pop(), layer, batch, gradients, accumulate)
        dx = dropout_backward(dx, dropout)
        embedding_backward(dx, wpe, g["wpe"], accumulate)
        # A tied head has already written its gradient into wte's.
        embedding_backward(dx, wte, g["wte"], accumulate or self.config.tie_word_embeddings)

    def _block_forward(
        self,
        x: np.ndarray,
        layer: int,
        batch: int,
        rng: np.random.Generator | None,
        kv_cache: Any,
        key_mask: np.ndarray | None,
        last_only: bool,
    ) -> tuple[np.ndarray, tuple]:
        """x (N, C), the residual stream, is added to in place -> x, caches.

        With last_only the keys and values are those of all positions, the rest is computed for the
        last position of each sequence alone.
        """
        p, config = self.parameters.under(f"h.{layer}."), self.config
        eps = config.layer_norm_epsilon
        activation_forward, _ = ACTIVATIONS[config.activation_function]

        def project(x: np.ndarray, name: str) -> np.ndarray:
            # The cache, with x in it, isn't kept: the backward computes x again.
            return linear_forward(x, p[f"{name}.weight"], p[f"{name}.bias"])[0]

        y, ln_1 = layernorm_forward(x, p["ln_1.weight"], p["ln_1.bias"], eps)
        qkv = project(y, "attn.c_attn")  # (N, C) -> (N, 3C)
        q, k, v = _split_heads(qkv, batch, 3, config.n_head)  # each (B, H, T, D)
        if kv_cache is not None:
            k, v = kv_cache.append(layer, k, v)  # each (B, H, S, D)
        if last_only:
            q, x = q[:, :, -1:], x.reshape(batch, -1, config.n_embd)[:, -1]  # T = 1, N = B
        y, attention = attention_forward(
            q, k, v, config.attention_scale(layer), key_mask, config.attn_pdrop, rng
        )
        y = project(merge_heads(y), "attn.c_proj")  # (B, H, T, D) -> (N, C)
        y, dropout_1 = dropout_forward(y, config.resid_pdrop, rng)
        add_into(x, y)

        y, ln_2 = layernorm_forward(x, p["ln_2.weight"], p["ln_2.bias"], eps)
        y = project(y, "mlp.c_fc")  # (N, C) -> (N, F)
        y, activation = activation_forward(y)
        y = project(y, "mlp.c_proj")  # (N, F) -> (N, C)
        y, dropout_2 = dropout_forward(y, config.resid_pdrop, rng)
        add_into(x, y)
        return x, (ln_1, attention, dropout_1, ln_2, activation, dropout_2)

    def _block_backward(
        self,
        dx: np.ndarray,
        caches: tuple,
        layer: int,
        batch: int,
        gradients: Parameters,
        accumulate: bool,
    ) -> None:
        """dx (N, C), the gradient of the residual stream, is added to in place."""
        p, g = self.parameters.under(f"h.{layer}."), gradients.under(f"h.{layer}.")
        config = self.config
        ln_1, attention, dropout_1, ln_2, activation, dropout_2 = caches
        activation_forward, activation_backward = ACTIVATIONS[config.activation_function]

        def project_backward(dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
            cache = LinearCache(x, p[f"{name}.weight"])
            dweight, dbias = g[f"{name}.weight"], g[f"{name}.bias"]
            return linear_backward(dy, cache, dweight, dbias, accumulate)[0]

        def norm_backward(dy: np.ndarray, cache: Any, name: str) -> np.ndarray:
            dweight, dbias = g[f"{name}.weight"], g[f"{name}.bias"]
            return layernorm_backward(dy, cache, dweight, dbias, accumulate)[0]

        # What goes into the projections is computed again: that costs less than keeping it, more
        # than a third of what a block would have to keep.
        dy = dropout_backward(dx, dropout_2)
        dy = project_backward(dy, activation_forward(activation)[0], "mlp.c_proj")
        dy = activation_backward(dy, activation)
        dy = project_backward(dy, layernorm_output(ln_2), "mlp.c_fc")
        add_into(dx, norm_backward(dy, ln_2, "ln_2"))

        dy = dropout_backward(dx, dropout_1)
        dy = project_backward(dy, merge_heads(attention.y), "attn.c_proj")
        dy = split_heads(dy, batch, config.head_size)  # (N, C) -> (B, H, T, D)
        dqkv = empty((len(dx), 3 * config.n_embd), dx.dtype)
        attention_backward(dy, attention, out=_split_heads(dqkv, batch, 3, config.n_head))
        dy = project_backward(dqkv, layernorm_output(ln_1), "attn.c_attn")
        add_into(dx, norm_backward(dy, ln_1, "ln_1"))


def _split_heads(x: np.ndarray, batch: int, parts: int, heads: int) -> tuple[np.ndarray, ...]:
    """(B·T, parts·C) -> `parts` views (B, H, T, D)."""
    x = split_heads(x, batch, x.shape[1] // (parts * heads))  # (B, parts·H, T, D)
    return tuple(x[:, heads * part : heads * (part + 1)] for part in range(parts))
