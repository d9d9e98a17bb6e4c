"""A block, and the two branches that it has: attention, and a feed-forward layer, plain or gated.

    x = x + attention(norm_1(x))                      twice adding to the
    x = x + mlp(norm_2(x))                            residual stream x

Blocks normalise before each branch and leave the stream alone ("pre-norm"). With dx the gradient of
the stream after x + f(x), that of the stream before it is

    dx + f'(x)ᵀ dx

one dx passes by the branch, another goes back through it, and the two are added. Each `backward`
below answers to the lines of its `forward` from the last to the first.

To lessons/gpt.py, which is all of this on one screen, this page adds dropout, heads that share keys
and values, QK-norm, RoPE, the gated MLP, a KV cache, hooks, and a way to save memory: what a
projection has read is kept for its backward or, in a large model, recomputed from what the layer
before it has kept (Context.save). The KV cache and the shortcut for last tokens go forward only.

N = B · T rows, C width, H query heads, K key and value heads, D head size, F feed-forward width, T
new tokens, S tokens that are attended to: layers/__init__.py has all letters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numgpt.layers import (
    dropout_backward,
    dropout_forward,
    rope_backward,
    rope_forward,
    swiglu_backward,
    swiglu_forward,
)
from numgpt.layers.dropout import DropoutCache
from numgpt.layers.swiglu import SwiGLUCache
from numgpt.models.config import Config
from numgpt.models.context import Context
from numgpt.models.heads import HeadsCache, attend, attend_backward, split_heads
from numgpt.models.hooks import Hooks
from numgpt.models.modules import Linear, Norm, NormCache, ProjectionCache, RMSNorm, Saved
from numgpt.models.parameters import Gradients
from numgpt.runtime import empty


class BlockCache(NamedTuple):
    norm_1: NormCache
    attention: AttentionBranchCache
    norm_2: NormCache
    mlp: MLPCache | GatedMLPCache


class Block:
    """x = x + attention(norm_1(x)); x = x + mlp(norm_2(x))."""

    def __init__(
        self, name: str, norm_1: Norm, attention: Attention, norm_2: Norm, mlp: MLP | GatedMLP
    ):
        self.name = name  # before the dot in its parameters' names, h.0
        self.layer = attention.layer
        self.hook_prefix = f"blocks.{self.layer}."  # of its hooks' names
        self.norm_1, self.attention = norm_1, attention
        self.norm_2, self.mlp = norm_2, mlp

    @property
    def linears(self) -> list[Linear]:
        """The projections, in the order of the forward pass."""
        return [self.attention.qkv, self.attention.out, self.mlp.fc, self.mlp.out]

    @property
    def hook_names(self) -> list[str]:
        """In the order of the forward pass."""
        names = ["hook_resid_pre", "ln1.hook_normalized"]
        names += [f"attn.{name}" for name in self.attention.hook_names]
        names += ["hook_attn_out", "hook_resid_mid", "ln2.hook_normalized"]
        names += [f"mlp.{name}" for name in self.mlp.hook_names]
        return [f"{self.hook_prefix}{n}" for n in (*names, "hook_mlp_out", "hook_resid_post")]

    def forward(self, x: np.ndarray, ctx: Context) -> tuple[np.ndarray, BlockCache]:
        """x (N, C), the residual stream, may be added to in place -> x, cache; (B, C) where only
        the last tokens are wanted."""
        hook = ctx.hooks.under(self.hook_prefix)
        x = hook.rows("hook_resid_pre", x)
        y, norm_1 = self.norm_1.forward(x, hook.under("ln1."))
        saved = ctx.save(y, self.norm_1.output, norm_1)  # y, or how it is recomputed
        y, attention = self.attention.forward(y, saved, ctx, hook.under("attn."))
        x = ctx.rows_like(y, x)  # the last tokens' alone, where attention gave only those
        x = ctx.add(x, hook.rows("hook_attn_out", y))

        x = hook.rows("hook_resid_mid", x)
        y, norm_2 = self.norm_2.forward(x, hook.under("ln2."))
        saved = ctx.save(y, self.norm_2.output, norm_2)
        y, mlp = self.mlp.forward(y, saved, ctx, hook.under("mlp."))
        x = ctx.add(x, hook.rows("hook_mlp_out", y))
        return hook.rows("hook_resid_post", x), BlockCache(norm_1, attention, norm_2, mlp)

    def backward(self, dx: np.ndarray, cache: BlockCache, ctx: Context, g: Gradients) -> np.ndarray:
        """dx (N, C), the gradient of the residual stream, may be added to in place -> dx."""
        hook = ctx.grad_hooks.under(self.hook_prefix)
        dx = hook.rows("hook_resid_post", dx)
        dy = hook.rows("hook_mlp_out", dx)
        dy = self.mlp.backward(dy, cache.mlp, ctx, g, hook.under("mlp."))  # type: ignore[arg-type]
        dx = ctx.add(dx, self.norm_2.backward(dy, cache.norm_2, g, hook.under("ln2.")))
        dx = hook.rows("hook_resid_mid", dx)

        dy = hook.rows("hook_attn_out", dx)
        dy = self.attention.backward(dy, cache.attention, ctx, g, hook.under("attn."))
        dx = ctx.add(dx, self.norm_1.backward(dy, cache.norm_1, g, hook.under("ln1.")))
        return hook.rows("hook_resid_pre", dx)


class AttentionBranchCache(NamedTuple):
    qkv: ProjectionCache
    q_norm: NormCache | None
    k_norm: NormCache | None
    attention: HeadsCache
    out: ProjectionCache
    dropout: DropoutCache


class Attention:
    """q, k, v = heads of y W_qkv + b;   out = merged(attention(q, k, v)) W_out + b."""

    def __init__(
        self,
        layer: int,
        qkv: Linear,
        out: Linear,
        config: Config,
        scale: float,  # what q · k is multiplied by
        rotates: bool = False,  # RoPE
        norms: dict[str, RMSNorm] | None = None,  # of each query's and key's features: {"q", "k"}
    ):
        self.layer, self.qkv, self.out = layer, qkv, out
        self.config, self.scale, self.rotates, self.norms = config, scale, rotates, norms or {}

    @property
    def hook_names(self) -> list[str]:
        """In the order of the forward pass."""
        made = ["hook_{}", *["hook_{}_normed"] * bool(self.norms), *["hook_rot_{}"] * self.rotates]
        names = [name.format(x) for x in "qk" for name in made]
        return [*names, "hook_v", "hook_pattern", "hook_z"]

    def forward(
        self, y: np.ndarray, saved: Saved, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, AttentionBranchCache]:
        """y (N, C) -> (N, C), or of the last tokens alone (B, C), cache."""
        y, qkv = self.qkv.forward(y, saved, ctx.rng)  # (N, C) -> (N, (H + 2K) · D)
        q, k, v = self.split(y, ctx.batch)  # (B, H, T, D), twice (B, K, T, D)
        q, q_norm = self.prepared("q", q, ctx, hook)
        k, k_norm = self.prepared("k", k, ctx, hook)
        k, v, mask = ctx.keys_and_values(self.layer, k, hook.heads("hook_v", v))  # T -> S
        q = ctx.queries(self.layer, q)  # the last tokens' alone, where only those are wanted
        z, attention = attend(q, k, v, self.scale, mask, self.config.attention_dropout, ctx, hook)
        y, out = self.out.forward(z, attention.merged_z, ctx.rng)  # (N, H·D) -> (N, C)
        y, dropout = dropout_forward(y, self.config.branch_dropout, ctx.rng)
        return y, AttentionBranchCache(qkv, q_norm, k_norm, attention, out, dropout)

    def backward(
        self, dy: np.ndarray, cache: AttentionBranchCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dy = dropout_backward(dy, cache.dropout)
        dz = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, H·D)
        dqkv = empty((len(dy), self.qkv.width), dy.dtype)  # one array, as qkv is one product
        dq, dk, dv = self.split(dqkv, ctx.batch)  # views of it, written by what follows
        attend_backward(dz, cache.attention, ctx, hook, out=(dq, dk, dv))
        hook.heads_into("hook_v", dv)
        for name, d, norm in (("k", dk, cache.k_norm), ("q", dq, cache.q_norm)):
            d_raw = self.prepared_backward(name, d, norm, ctx, g, hook)
            if d_raw is not d:  # a hook, a norm or RoPE has made a new array
                d[...] = d_raw
        return self.qkv.backward(dqkv, cache.qkv, g)  # (N, (H + 2K) · D) -> (N, C)

    def split(self, qkv: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, (H + 2K) · D) -> views: queries (B, H, T, D), keys and values (B, K, T, D)."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        x = split_heads(qkv, batch, heads + 2 * kv_heads)
        return x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]

    def prepared(
        self, name: str, x: np.ndarray, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, NormCache | None]:
        """Queries or keys with QK-norm (Qwen3), then RoPE, where the family has them.  (B, H, T, D)
        -> (B, H, T, D), cache."""
        x, cache = hook.heads(f"hook_{name}", x), None
        if self.norms:
            x, cache = self.norms[name].forward(x)
            x = hook(f"hook_{name}_normed", x)
        if self.rotates:
            assert ctx.rotation is not None
            x, _ = rope_forward(x, ctx.rotation)
            x = hook.heads(f"hook_rot_{name}", x)
        return x, cache

    def prepared_backward(
        self,
        name: str,
        dx: np.ndarray,
        cache: NormCache | None,
        ctx: Context,
        g: Gradients,
        hook: Hooks,
    ) -> np.ndarray:
        """(B, H, T, D), the gradient of what `prepared` gave -> of what it was given."""
        if self.rotates:
            assert ctx.rotation is not None
            dx = rope_backward(hook.heads(f"hook_rot_{name}", dx), ctx.rotation)
        if cache is not None:
            dx = self.norms[name].backward(hook(f"hook_{name}_normed", dx), cache, g)
        return hook.heads(f"hook_{name}", dx)


class MLPCache(NamedTuple):
    fc: ProjectionCache
    activation: np.ndarray  # (N, F), what its backward reads
    out: ProjectionCache
    dropout: DropoutCache


class MLP:
    """out = activation(y W_fc + b) W_out + b."""

    hook_names = ("hook_pre", "hook_post")

    def __init__(
        self, fc: Linear, out: Linear, config: Config, activation: tuple[Callable, Callable]
    ):
        self.fc, self.out, self.config = fc, out, config
        self.act_forward, self.act_backward = activation

    def forward(
        self, y: np.ndarray, saved: Saved, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, MLPCache]:
        """y (N, C) -> (N, C), cache."""
        y, fc = self.fc.forward(y, saved, ctx.rng)  # (N, C) -> (N, F)
        y, activation = self.act_forward(hook.rows("hook_pre", y))
        y = hook.rows("hook_post", y)
        saved = ctx.save(y, self._activated, activation)
        y, out = self.out.forward(y, saved, ctx.rng)  # (N, F) -> (N, C)
        y, dropout = dropout_forward(y, self.config.branch_dropout, ctx.rng)
        return y, MLPCache(fc, activation, out, dropout)

    def backward(
        self, dy: np.ndarray, cache: MLPCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dy = dropout_backward(dy, cache.dropout)
        dy = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, F)
        dy = self.act_backward(hook.rows("hook_post", dy), cache.activation)
        dy = hook.rows("hook_pre", dy)
        return self.fc.backward(dy, cache.fc, g)  # (N, F) -> (N, C)

    def _activated(self, cache: np.ndarray) -> np.ndarray:
        return self.act_forward(cache)[0]


class GatedMLPCache(NamedTuple):
    fc: ProjectionCache
    swiglu: SwiGLUCache
    out: ProjectionCache


class GatedMLP:
    """gate, up = y W_fc + b;   out = swiglu(gate, up) W_out + b."""

    hook_names = ("hook_pre", "hook_pre_linear", "hook_post")

    def __init__(self, fc: Linear, out: Linear):
        self.fc, self.out = fc, out

    def forward(
        self, y: np.ndarray, saved: Saved, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, GatedMLPCache]:
        """y (N, C) -> (N, C), cache."""
        y, fc = self.fc.forward(y, saved, ctx.rng)  # (N, C) -> (N, 2F)
        gate, up = np.split(y, 2, axis=1)  # views (N, F)
        gate, up = hook.rows("hook_pre", gate), hook.rows("hook_pre_linear", up)
        y, swiglu = swiglu_forward(gate, up)
        y = hook.rows("hook_post", y)
        saved = ctx.save(y, self._gated, swiglu)
        y, out = self.out.forward(y, saved, ctx.rng)  # (N, F) -> (N, C)
        return y, GatedMLPCache(fc, swiglu, out)

    def backward(
        self, dy: np.ndarray, cache: GatedMLPCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dy = hook.rows("hook_post", self.out.backward(dy, cache.out, g))  # (N, C) -> (N, F)
        dgate_up = empty((len(dy), self.fc.width), dy.dtype)
        dgate, dup = np.split(dgate_up, 2, axis=1)  # views, to be filled
        swiglu_backward(dy, cache.swiglu, out=(dgate, dup))
        hook.rows_into("hook_pre", dgate)
        hook.rows_into("hook_pre_linear", dup)
        return self.fc.backward(dgate_up, cache.fc, g)  # (N, 2F) -> (N, C)

    @staticmethod
    def _gated(cache: SwiGLUCache) -> np.ndarray:
        return swiglu_forward(*cache)[0]
