"""Llama (Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783).

    x = embed_tokens[ids]
    x = x + attention(rmsnorm(x))                     each block
    x = x + swiglu(rmsnorm(x))
    logits = rmsnorm(x) lm_headᵀ

What differs from GPT-2 (gpt2.py): positions are turns of the queries and keys instead of a table,
norms have neither mean nor bias, the feed-forward layer is gated, several query heads may share
a KV head, and the projections usually lack biases. Names, layout (out, in) and initialisation are
those of Hugging Face's models of this family. Qwen2 (Yang et al. 2024, arXiv:2407.10671) is the
same with biases on queries, keys and values; Qwen3 (Yang et al. 2025, arXiv:2505.09388), the dense
ones, has none, and normalises each query's and each key's D features before they turn.

q, k and v have the same input, and so have gate and up: they are computed as one product, forward
and backward, where the weights lie side by side.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from numgpt.layers import llama3_frequencies, rope_frequencies, rope_rotation
from numgpt.layers.embedding import EmbeddingCache
from numgpt.messages import shown
from numgpt.models.blocks import Attention, Block, BlockCache, GatedMLP
from numgpt.models.config import Config, Sizes
from numgpt.models.context import Context
from numgpt.models.language_model import LanguageModel
from numgpt.models.modules import Embedding, Linear, NormCache, RMSNorm, Unembedding
from numgpt.models.parameters import Gradients
from numgpt.options import OptionError, number, one_of, optional, require, token_ids, truth, whole

MODEL_TYPES = ("llama", "qwen2", "qwen3")
INNER_MULTIPLE = 32  # a feed-forward width that is chosen here is rounded up to one
LLAMA3_SCALING = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


@dataclasses.dataclass
class LlamaConfig(Config):
    """The fields of a Hugging Face Llama config.json that affect the computation, with the same
    defaults, except that the special tokens' ids default to None; and one that Qwen2 needs."""

    layers_field = "num_hidden_layers"
    context_field = "max_position_embeddings"
    heads_field = "num_attention_heads"
    width_field = "hidden_size"

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
    rope_scaling: dict[str, float | str] | None = None  # Llama 3.1's, see layers/rope.py
    attention_bias: bool = False
    attention_output_bias: bool | None = None  # None: as attention_bias; Qwen2 has all but this one
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    model_type: str = "llama"  # or another of MODEL_TYPES

    @classmethod
    def of_sizes(cls, model_type: str, sizes: Sizes) -> LlamaConfig:
        return cls(
            model_type=model_type,
            attention_bias=model_type == "qwen2",
            attention_output_bias=False,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads or sizes.heads,
            hidden_size=sizes.width,
            # Three matrices of 8/3 C have the parameters of GPT-2's two of 4 C.
            intermediate_size=-(-8 * sizes.width // 3 // INNER_MULTIPLE) * INNER_MULTIPLE,
            max_position_embeddings=sizes.context_length,
            vocab_size=sizes.vocab_size,
            tie_word_embeddings=True,
        )

    def validate(self) -> None:
        require(self, whole(1), "num_hidden_layers", "num_attention_heads", "hidden_size")
        require(self, whole(1), "intermediate_size", "max_position_embeddings", "vocab_size")
        require(self, optional(whole(1)), "num_key_value_heads", "head_dim")
        require(self, number(above=0), "rms_norm_eps", "initializer_range", "rope_theta")
        require(self, number(least=0, below=1), "attention_dropout")
        require(self, truth(), "attention_bias", "mlp_bias", "tie_word_embeddings")
        require(self, optional(truth()), "attention_output_bias")
        require(self, token_ids(), "bos_token_id", "eos_token_id", "pad_token_id")
        require(self, one_of(MODEL_TYPES), "model_type")
        heads = self.num_attention_heads
        if heads % self.kv_heads:
            raise OptionError(
                "{num_attention_heads} is not a multiple of {num_key_value_heads}",
                num_attention_heads=heads,
                num_key_value_heads=self.kv_heads,
            )
        if self.head_dim is None and self.hidden_size % heads:
            raise OptionError.of(self, "{hidden_size} is not a multiple of {num_attention_heads}")
        if self.head_size % 2:
            raise OptionError(
                "heads of size {0} can't be rotated: {head_dim:name}, or else {hidden_size:name} /"
                " {num_attention_heads:name}, must be even",
                self.head_size,
            )
        if self.rope_scaling is not None:
            self._validate_scaling(self.rope_scaling)

    def _validate_scaling(self, scaling: dict[str, float | str]) -> None:
        if not isinstance(scaling, dict) or scaling.get("rope_type") != "llama3":
            raise ValueError(
                f"rope_scaling={shown(scaling)} is not supported, only rope_type 'llama3'"
            )
        for name in LLAMA3_SCALING:
            if not number(above=0).fits(value := scaling.get(name)):
                raise ValueError(f"rope_scaling: {name}={shown(value)}, expected a number above 0")
        if not float(scaling["low_freq_factor"]) < float(scaling["high_freq_factor"]):
            raise ValueError("rope_scaling: low_freq_factor is not below high_freq_factor")

    @property
    def inner_width(self) -> int:
        return self.intermediate_size

    @property
    def kv_heads(self) -> int:
        given = self.num_key_value_heads
        return self.num_attention_heads if given is None else given

    @property
    def normalises_heads(self) -> bool:
        """Whether queries and keys have norms of their own."""
        return self.model_type == "qwen3"

    @property
    def output_bias(self) -> bool:
        given = self.attention_output_bias
        return self.attention_bias if given is None else given

    @property
    def head_size(self) -> int:
        return self.head_dim or super().head_size

    def frequencies(self) -> np.ndarray:
        """(D/2,): by how much each pair of a head's features turns from a token to the next."""
        frequencies = rope_frequencies(self.head_size, self.rope_theta)
        if self.rope_scaling is None:
            return frequencies
        factor, low, high, length = (float(self.rope_scaling[name]) for name in LLAMA3_SCALING)
        return llama3_frequencies(frequencies, factor, low, high, length)

    def set_dropout(self, p: float) -> None:
        """The family knows dropout of the attention's probabilities only."""
        self.attention_dropout = p


class LlamaCache(NamedTuple):
    embed_tokens: EmbeddingCache
    blocks: list[BlockCache]
    final_norm: NormCache


class Llama(LanguageModel[LlamaConfig, LlamaCache]):
    """A model of the Llama family: `model(ids)` gives logits, `loss_and_grads` the hand-derived
    gradients."""

    config_class = LlamaConfig
    embeddings = ("embed_tokens.weight",)
    default_lora_targets = ("q_proj", "v_proj")
    embedding_hooks = ("hook_embed",)

    def build(self) -> None:
        parameters, config = self.parameters, self.config
        self.embed_tokens = Embedding(parameters, "embed_tokens.weight")
        self.blocks = [self._block(layer) for layer in range(config.num_hidden_layers)]
        self.final_norm = RMSNorm(parameters, "norm", config.rms_norm_eps)
        table = "embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.unembedding = Unembedding(parameters, f"{table}.weight")

    def _block(self, layer: int) -> Block:
        name, parameters, config = f"layers.{layer}", self.parameters, self.config

        def linear(part: str, *names: str) -> Linear:
            return Linear(parameters, *(f"{name}.{part}.{n}" for n in names), transposed=True)

        def norm(of: str) -> RMSNorm:
            return RMSNorm(parameters, f"{name}.{of}", config.rms_norm_eps)

        attention = Attention(
            layer,
            linear("self_attn", "q_proj", "k_proj", "v_proj"),
            linear("self_attn", "o_proj"),
            config,
            1 / math.sqrt(config.head_size),
            rotates=True,
            norms={x: norm(f"self_attn.{x}_norm") for x in "qk" if config.normalises_heads},
        )
        mlp = GatedMLP(linear("mlp", "gate_proj", "up_proj"), linear("mlp", "down_proj"))
        norms = norm("input_layernorm"), norm("post_attention_layernorm")
        return Block(name, norms[0], attention, norms[1], mlp)

    def forward(self, ids: np.ndarray, ctx: Context) -> tuple[np.ndarray, LlamaCache]:
        positions = ctx.positions(ids, self.config.max_position_embeddings)
        x, embed_tokens = self.embed_tokens.forward(ids.ravel())  # (B, T) -> (N, C)
        x = ctx.hooks.rows("hook_embed", x)
        ctx.rotation = rope_rotation(positions, self.config.frequencies(), x.dtype)
        caches = []
        for block in self.blocks:
            x, cache = block.forward(x, ctx)
            if ctx.needs_cache(block.layer):
                caches.append(cache)
        ctx.advance()
        y, final_norm = self.final_norm.forward(x, ctx.hooks.under("ln_final."))
        return y, LlamaCache(embed_tokens, caches, final_norm)

    def backward(self, dy: np.ndarray, cache: LlamaCache, ctx: Context, g: Gradients) -> None:
        dx = self.final_norm.backward(dy, cache.final_norm, g, ctx.grad_hooks.under("ln_final."))
        for block in reversed(self.blocks[ctx.first_trained :]):
            dx = block.backward(dx, cache.blocks.pop(), ctx, g)  # the last cache is its own
        if ctx.first_trained:
            return  # all before that block is frozen, the embeddings too
        dx = ctx.grad_hooks.rows("hook_embed", dx)
        self.embed_tokens.backward(dx, cache.embed_tokens, g)

    @staticmethod
    def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
        width, inner, size = config.hidden_size, config.intermediate_size, config.head_size
        queries, keys = config.num_attention_heads * size, config.kv_heads * size
        block: dict[str, tuple[int, ...]] = {}

        def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
            block[f"{name}.weight"] = (outputs, inputs)
            if bias:
                block[f"{name}.bias"] = (outputs,)

        block["input_layernorm.weight"] = (width,)
        linear("self_attn.q_proj", queries, width, config.attention_bias)
        linear("self_attn.k_proj", keys, width, config.attention_bias)
        linear("self_attn.v_proj", keys, width, config.attention_bias)
        if config.normalises_heads:
            block |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
        linear("self_attn.o_proj", width, queries, config.output_bias)
        block["post_attention_layernorm.weight"] = (width,)
        linear("mlp.gate_proj", inner, width, config.mlp_bias)
        linear("mlp.up_proj", inner, width, config.mlp_bias)
        linear("mlp.down_proj", width, inner, config.mlp_bias)
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, width)}
        for layer in range(config.num_hidden_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        shapes["norm.weight"] = (width,)
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, width)
        return shapes
