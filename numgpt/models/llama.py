"""Llama (Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783).

    x = embed_tokens[ids]
    for each block:     x += attention(rmsnorm(x))        x += swiglu(rmsnorm(x))
    logits = rmsnorm(x) lm_headᵀ

What differs from GPT-2 (gpt2.py): positions are turns of the queries and keys instead of a table,
norms have neither mean nor bias, the feed-forward layer is gated, several query heads may share
a key head, and the projections usually lack biases. Names, layout (out, in) and initialisation are
those of Hugging Face's models of this family. Qwen2 (Yang et al. 2024, arXiv:2407.10671) is the
same with biases on queries, keys and values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from numgpt.layers import (
    LinearCache,
    attention_backward,
    attention_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    llama3_frequencies,
    rmsnorm_backward,
    rmsnorm_forward,
    rmsnorm_output,
    rope_backward,
    rope_forward,
    rope_frequencies,
    rope_rotation,
    swiglu_backward,
    swiglu_forward,
)
from numgpt.messages import shown
from numgpt.models.checks import require_booleans, require_ids, require_number, require_whole
from numgpt.models.heads import merge_heads, positions_of, split_heads
from numgpt.models.language_model import LanguageModel
from numgpt.models.parameters import Parameters
from numgpt.runtime import add_into

QUERY_KEY_VALUE = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
GATE_UP = "mlp.gate_proj", "mlp.up_proj"
LLAMA3_SCALING = (
    *("factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
)


@dataclasses.dataclass
class LlamaConfig:
    """The fields of a Hugging Face Llama config.json that change the numbers, with the same
    defaults."""

    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: as many as attention heads
    hidden_size: int = 4096
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    intermediate_size: int = 11008  # feed-forward width
    max_position_embeddings: int = 2048
    vocab_size: int = 32000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0  # base of the frequencies
    rope_scaling: dict[str, Any] | None = None  # Llama 3.1's, see layers/rope.py
    rope_interleave: bool = False  # pairs of neighbours instead of halves
    attention_bias: bool = False
    attention_output_bias: bool | None = None  # None: as attention_bias; Qwen2 has all but this one
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None  # ends a generated sequence

    def validate(self) -> None:
        """Raises ValueError naming the field that can't be."""
        require_whole(
            self,
            *("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"),
            *("max_position_embeddings", "vocab_size"),
        )
        require_whole(self, "num_key_value_heads", "head_dim", optional=True)
        require_number(self, "rms_norm_eps", "initializer_range", "rope_theta")
        require_number(self, "attention_dropout", least=0, below=1)
        require_booleans(
            self, "rope_interleave", "attention_bias", "mlp_bias", "tie_word_embeddings"
        )
        if self.attention_output_bias is not None:
            require_booleans(self, "attention_output_bias")
        require_ids(self, "bos_token_id", "eos_token_id")
        heads = self.num_attention_heads
        if heads % self.key_heads:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of"
                f" num_key_value_heads={self.key_heads}"
            )
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"heads of size {self.head_size} can't be rotated: it must be even")
        if self.rope_scaling is not None:
            self._validate_scaling(self.rope_scaling)

    def _validate_scaling(self, scaling: dict[str, Any]) -> None:
        if not isinstance(scaling, dict) or scaling.get("rope_type") != "llama3":
            raise ValueError(
                f"rope_scaling={shown(scaling)} is not supported, only rope_type 'llama3'"
            )
        for name in LLAMA3_SCALING:
            value = scaling.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"rope_scaling: {name}={shown(value)}, expected a number above 0")
        if not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
            raise ValueError("rope_scaling: low_freq_factor is not below high_freq_factor")

    @property
    def key_heads(self) -> int:
        given = self.num_key_value_heads
        return self.num_attention_heads if given is None else given

    @property
    def output_bias(self) -> bool:
        given = self.attention_output_bias
        return self.attention_bias if given is None else given

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def frequencies(self) -> np.ndarray:
        """(D/2,): by how much each pair of a head's features turns from a token to the next."""
        frequencies = rope_frequencies(self.head_size, self.rope_theta)
        if self.rope_scaling is None:
            return frequencies
        scaling = {name: self.rope_scaling[name] for name in LLAMA3_SCALING}
        return llama3_frequencies(frequencies, **scaling)

    def set_dropout(self, p: float) -> None:
        """The family knows dropout of the attention's probabilities only."""
        self.attention_dropout = p


class Llama(LanguageModel):
    """A model of the Llama family: `model(ids)` gives logits, `loss_and_grads` the hand-derived
    gradients."""

    config_class = LlamaConfig
    context_field = "max_position_embeddings"

    @staticmethod
    def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        width, inner, size = config.hidden_size, config.intermediate_size, config.head_size
        queries, keys = config.num_attention_heads * size, config.key_heads * size
        block: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (width,)}
        for name, shape in {
            "q_proj": (queries, width),
            "k_proj": (keys, width),
            "v_proj": (keys, width),
            "o_proj": (width, queries),
        }.items():
            block[f"self_attn.{name}.weight"] = shape
            if config.output_bias if name == "o_proj" else config.attention_bias:
                block[f"self_attn.{name}.bias"] = shape[:1]
        block["post_attention_layernorm.weight"] = (width,)
        for name, shape in {
            "gate_proj": (inner, width),
            "up_proj": (inner, width),
            "down_proj": (width, inner),
        }.items():
            block[f"mlp.{name}.weight"] = shape
            if config.mlp_bias:
                block[f"mlp.{name}.bias"] = shape[:1]
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, width)}
        for layer in range(config.num_hidden_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        shapes["norm.weight"] = (width,)
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, width)
        return shapes

    @property
    def head(self) -> str:
        return "embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        return self.config.num_hidden_layers, self.config.key_heads, self.config.head_size

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
        x, embed_tokens = embedding_forward(ids.ravel(), p["embed_tokens.weight"])  # -> (N, C)
        rotation = rope_rotation(positions, config.frequencies(), x.dtype)
        blocks = []
        for layer in range(config.num_hidden_layers):
            last = last_only and layer == config.num_hidden_layers - 1
            x, block = self._block_forward(
                x, layer, len(ids), rotation, rng, kv_cache, key_mask, last
            )
            if keep_caches:
                blocks.append(block)
        if kv_cache is not None:
            kv_cache.advance(ids.shape[1])
        y, norm = rmsnorm_forward(x, p["norm.weight"], config.rms_norm_eps)
        return y, (embed_tokens, rotation, blocks, norm, len(ids))

    def backward(
        self, dx: np.ndarray, caches: Any, gradients: Parameters, accumulate: bool
    ) -> None:
        g, (embed_tokens, rotation, blocks, norm, batch) = gradients, caches
        dx, _ = rmsnorm_backward(dx, norm, g["norm.weight"], accumulate)
        for layer in reversed(range(self.config.num_hidden_layers)):
            self._block_backward(dx, blocks.pop(), layer, batch, rotation, gradients, accumulate)
        # A tied head has already written its gradient into the table's.
        tied = self.config.tie_word_embeddings
        embedding_backward(dx, embed_tokens, g["embed_tokens.weight"], accumulate or tied)

    def _block_forward(
        self,
        x: np.ndarray,
        layer: int,
        batch: int,
        rotation: Any,
        rng: np.random.Generator | None,
        kv_cache: Any,
        key_mask: np.ndarray | None,
        last_only: bool,
    ) -> tuple[np.ndarray, tuple]:
        """x (N, C), the residual stream, is added to in place -> x, caches.

        With last_only the keys and values are those of all positions, the rest is computed for the
        last position of each sequence alone.
        """
        p, config = self.parameters.under(f"layers.{layer}."), self.config
        eps, interleaved = config.rms_norm_eps, config.rope_interleave

        def project(x: np.ndarray, name: str) -> np.ndarray:
            # The cache, with x in it, isn't kept: the backward computes x again.
            return linear_forward(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))[0]

        y, norm_1 = rmsnorm_forward(x, p["input_layernorm.weight"], eps)
        q, k, v = (  # (B, H, T, D), and twice (B, K, T, D)
            split_heads(projected, batch, config.head_size)
            for projected in self._project_all(y, layer, *QUERY_KEY_VALUE)
        )
        q, _ = rope_forward(q, rotation, interleaved)
        k, _ = rope_forward(k, rotation, interleaved)
        if kv_cache is not None:
            k, v = kv_cache.append(layer, k, v)  # each (B, K, S, D)
        if last_only:
            q, x = q[:, :, -1:], x.reshape(batch, -1, config.hidden_size)[:, -1]  # T = 1, N = B
        y, attention = attention_forward(
            q, k, v, key_mask=key_mask, dropout=config.attention_dropout, rng=rng
        )
        add_into(x, project(merge_heads(y), "self_attn.o_proj"))  # (B, H, T, D) -> (N, C)

        y, norm_2 = rmsnorm_forward(x, p["post_attention_layernorm.weight"], eps)
        gate, up = self._project_all(y, layer, *GATE_UP)  # (N, C) -> (N, F)
        y, swiglu = swiglu_forward(gate, up)
        add_into(x, project(y, "mlp.down_proj"))  # (N, F) -> (N, C)
        return x, (norm_1, attention, norm_2, swiglu)

    def _block_backward(
        self,
        dx: np.ndarray,
        caches: tuple,
        layer: int,
        batch: int,
        rotation: Any,
        gradients: Parameters,
        accumulate: bool,
    ) -> None:
        """dx (N, C), the gradient of the residual stream, is added to in place."""
        p, g = self.parameters.under(f"layers.{layer}."), gradients.under(f"layers.{layer}.")
        config = self.config
        norm_1, attention, norm_2, swiglu = caches

        def project_backward(dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
            weight, bias = f"{name}.weight", f"{name}.bias"
            cache = LinearCache(x, p[weight].T)
            return linear_backward(dy, cache, g[weight].T, g.get(bias), accumulate)[0]

        # As in gpt2.py, what goes into the projections is computed again.
        dy = project_backward(dx, swiglu_forward(*swiglu)[0], "mlp.down_proj")
        dgate, dup = swiglu_backward(dy, swiglu)
        y = rmsnorm_output(norm_2)
        dy = project_backward(dgate, y, "mlp.gate_proj")
        add_into(dy, project_backward(dup, y, "mlp.up_proj"))
        dweight = g["post_attention_layernorm.weight"]
        add_into(dx, rmsnorm_backward(dy, norm_2, dweight, accumulate)[0])

        dy = project_backward(dx, merge_heads(attention.y), "self_attn.o_proj")
        dy = split_heads(dy, batch, config.head_size)  # (N, H·D) -> (B, H, T, D)
        dq, dk, dv = attention_backward(dy, attention)
        dq = rope_backward(dq, rotation, config.rope_interleave)
        dk = rope_backward(dk, rotation, config.rope_interleave)
        y = rmsnorm_output(norm_1)
        dy = project_backward(merge_heads(dq), y, "self_attn.q_proj")
        add_into(dy, project_backward(merge_heads(dk), y, "self_attn.k_proj"))
        add_into(dy, project_backward(merge_heads(dv), y, "self_attn.v_proj"))
        dweight = g["input_layernorm.weight"]
        add_into(dx, rmsnorm_backward(dy, norm_1, dweight, accumulate)[0])

    def _project_all(self, x: np.ndarray, layer: int, *names: str) -> list[np.ndarray]:
        """Several projections of x (N, C), each (N, O): as one product, where the weights lie side
        by side. Few large products read weights faster from memory than many small ones."""
        p = self.parameters.under(f"layers.{layer}.")
        together = self.parameters.joined(*(f"layers.{layer}.{name}.weight" for name in names))
        whole = None if together is None else linear_forward(x, together.T)[0]
        results, start = [], 0
        for name in names:
            weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
            if whole is None:
                y, _ = linear_forward(x, weight.T, bias)
            else:
                y = whole[:, start : start + len(weight)]
                start += len(weight)
                if bias is not None:
                    y += bias
            results.append(y)
        return results
