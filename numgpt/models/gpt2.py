"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

    x = wte[ids] + wpe[positions]                     embed
    x = x + attention(layernorm(x))                   each block (blocks.py)
    x = x + mlp(layernorm(x))
    logits = layernorm(x) wteᵀ                        unembed

The unembedding is the embedding table ("tied"): wte is used twice, and so its gradient is the sum
of two contributions. With y = layernorm(x), what the unembedding reads,

    dwte = dlogitsᵀ y + onehot(ids)ᵀ dx               written by Unembedding, added by Embedding

`forward` returns the hidden states y; `self.unembedding` makes of them logits, or the loss.

Parameters carry Hugging Face's names and layout (linear layers are (in, out)), "transformer." left
out. The initialisation is Hugging Face's and nanoGPT's as well: normal with a standard deviation
of 0.02, and of 0.02/√(2 n_layer) for what writes to the stream. OpenAI's release has other names
(model/h0/attn/c_attn/w), and its code draws wpe with 0.01 and does not scale by depth,
although the paper describes it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from numgpt import layers
from numgpt.layers.dropout import DropoutCache
from numgpt.layers.embedding import EmbeddingCache
from numgpt.models.blocks import MLP, Attention, Block, BlockCache
from numgpt.models.config import Config, Sizes
from numgpt.models.context import Context
from numgpt.models.language_model import LanguageModel
from numgpt.models.modules import Embedding, LayerNorm, Linear, NormCache, Unembedding
from numgpt.models.parameters import Gradients
from numgpt.options import OptionError, number, one_of, optional, require, token_ids, truth, whole

# By Hugging Face's names for them. The cache is one array that the backward reads, and from which
# forward gives the output again (blocks.MLP): x, or for ReLU its output, as relu(relu(x)) =
# relu(x).
ACTIVATIONS = {
    "gelu_new": (layers.gelu_tanh_forward, layers.gelu_tanh_backward),
    "gelu_pytorch_tanh": (layers.gelu_tanh_forward, layers.gelu_tanh_backward),
    "gelu": (layers.gelu_erf_forward, layers.gelu_erf_backward),
    "relu": (layers.relu_forward, layers.relu_backward),
}


@dataclasses.dataclass
class GPTConfig(Config):
    """The fields of a Hugging Face GPT-2 config.json that affect the computation, with the same
    defaults, except that the special tokens' ids default to None."""

    layers_field = "n_layer"
    context_field = "n_positions"
    heads_field = "n_head"
    width_field = "n_embd"

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
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    model_type: str = "gpt2"

    @classmethod
    def of_sizes(cls, model_type: str, sizes: Sizes) -> GPTConfig:
        if sizes.kv_heads:
            raise OptionError("{n_kv_head}: GPT-2's heads share no keys", n_kv_head=sizes.kv_heads)
        return cls(
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_embd=sizes.width,
            n_positions=sizes.context_length,
            vocab_size=sizes.vocab_size,
        )

    def validate(self) -> None:
        require(self, whole(1), "n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        require(self, optional(whole(1)), "n_inner")
        if self.n_embd % self.n_head:
            raise OptionError.of(self, "{n_embd} is not a multiple of {n_head}")
        require(self, one_of(ACTIVATIONS), "activation_function")
        require(self, one_of(("gpt2",)), "model_type")
        require(self, number(least=0, below=1), "embd_pdrop", "attn_pdrop", "resid_pdrop")
        require(self, number(above=0), "layer_norm_epsilon", "initializer_range")
        require(self, truth(), "tie_word_embeddings", "scale_attn_weights")
        require(self, truth(), "scale_attn_by_inverse_layer_idx")
        require(self, token_ids(), "bos_token_id", "eos_token_id", "pad_token_id")

    @property
    def attention_dropout(self) -> float:
        return self.attn_pdrop

    @property
    def branch_dropout(self) -> float:
        return self.resid_pdrop

    @property
    def inner_width(self) -> int:
        return self.n_inner or 4 * self.n_embd

    def attention_scale(self, layer: int) -> float:
        """What q · k is multiplied by in this layer."""
        scale = 1 / math.sqrt(self.head_size) if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def set_dropout(self, p: float) -> None:
        self.embd_pdrop = self.attn_pdrop = self.resid_pdrop = p


class GPTCache(NamedTuple):
    wte: EmbeddingCache
    wpe: EmbeddingCache
    dropout: DropoutCache
    blocks: list[BlockCache]
    final_norm: NormCache


class GPT(LanguageModel[GPTConfig, GPTCache]):
    """GPT-2: `model(ids)` gives logits, `loss_and_grads` the hand-derived gradients."""

    config_class = GPTConfig
    embeddings = ("wte", "wpe")
    default_lora_targets = ("c_attn",)
    embedding_hooks = ("hook_embed", "hook_pos_embed")

    def build(self) -> None:
        parameters, config = self.parameters, self.config
        self.wte, self.wpe = Embedding(parameters, "wte"), Embedding(parameters, "wpe")
        self.blocks = [self._block(layer) for layer in range(config.n_layer)]
        self.final_norm = LayerNorm(parameters, "ln_f", config.layer_norm_epsilon)
        table = "wte" if config.tie_word_embeddings else "lm_head"
        self.unembedding = Unembedding(parameters, table)

    def _block(self, layer: int) -> Block:
        name, parameters, config = f"h.{layer}", self.parameters, self.config
        linears = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
        qkv, out, fc, proj = (Linear(parameters, f"{name}.{part}") for part in linears)
        ln_1 = LayerNorm(parameters, f"{name}.ln_1", config.layer_norm_epsilon)
        ln_2 = LayerNorm(parameters, f"{name}.ln_2", config.layer_norm_epsilon)
        attention = Attention(layer, qkv, out, config, config.attention_scale(layer))
        mlp = MLP(fc, proj, ACTIVATIONS[config.activation_function])
        return Block(name, ln_1, attention, ln_2, mlp)

    def forward(self, ids: np.ndarray, ctx: Context) -> tuple[np.ndarray, GPTCache]:
        positions = ctx.positions(ids, self.config.n_positions)
        x, wte = self.wte.forward(ids.ravel())  # (B, T) -> (N, C)
        position, wpe = self.wpe.forward(positions.ravel())
        x = ctx.hooks.rows("hook_embed", x)
        x = ctx.add(x, ctx.hooks.rows("hook_pos_embed", position))
        x, dropout = layers.dropout_forward(x, self.config.embd_pdrop, ctx.rng)
        caches = []
        for block in self.blocks:
            x, cache = block.forward(x, ctx)
            if ctx.needs_cache(block.layer):
                caches.append(cache)
        ctx.advance()
        y, final_norm = self.final_norm.forward(x, ctx.hooks.under("ln_final."))
        return y, GPTCache(wte, wpe, dropout, caches, final_norm)

    def backward(self, dy: np.ndarray, cache: GPTCache, ctx: Context, g: Gradients) -> None:
        dx = self.final_norm.backward(dy, cache.final_norm, g, ctx.grad_hooks.under("ln_final."))
        for block in reversed(self.blocks[ctx.first_trained :]):
            dx = block.backward(dx, cache.blocks.pop(), ctx, g)  # the last cache is its own
        if ctx.first_trained:
            return  # all before that block is frozen, the embeddings too
        dx = layers.dropout_backward(dx, cache.dropout)
        self.wpe.backward(ctx.grad_hooks.rows("hook_pos_embed", dx), cache.wpe, g)
        self.wte.backward(ctx.grad_hooks.rows("hook_embed", dx), cache.wte, g)

    def init_std(self, name: str) -> float:
        """Matrices that write to the residual stream begin at 1/√(2 n_layer) of the others' size,
        because 2 n_layer branches add up there."""
        residual = name.endswith("c_proj.weight")
        scale = math.sqrt(2 * self.config.n_layer) if residual else 1
        return self.config.initializer_range / scale

    @staticmethod
    def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
        width, inner = config.n_embd, config.inner_width
        block: dict[str, tuple[int, ...]] = {
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
        shapes: dict[str, tuple[int, ...]] = {"wte": (config.vocab_size, width)}
        shapes["wpe"] = (config.n_positions, width)
        for layer in range(config.n_layer):
            shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
        if not config.tie_word_embeddings:
            shapes["lm_head"] = (config.vocab_size, width)
        return shapes
