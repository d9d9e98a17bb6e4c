"""A block, and the two branches that it has: attention, and a feed-forward layer, plain or gated.

    x = x + attention(norm_1(x))                      twice adding to the
    x = x + mlp(norm_2(x))                            residual stream x

Blocks normalise before each branch and leave the stream alone ("pre-norm"). From y = x + f(x) comes

    dx = dy + f'(x)ᵀ dy

so backward the gradient runs down the same stream unchanged, and each branch adds its own to it.
Each `backward` below is its `forward` read from the last line to the first.

To lessons/gpt.py, which is all of this on one screen, this page adds grouped heads, rotation,
gates, a KV cache, hooks, and thrift: what a projection has read is kept for its backward or, in a
large model, recomputed from what the layer before it has kept (Context.keep). The letters of shapes
are those of layers/__init__.py.
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
from numgpt.models.modules import Input, Linear, Norm, NormCache, ProjectionCache, RMSNorm
from numgpt.models.parameters import Gradients
from numgpt.runtime import empty


class BlockCache(NamedTuple):
    norm_1: NormCache
    attention: AttentionBranchCache
    norm_2: NormCache
    mlp: MLPCache | GatedMLPCache


class Block:
    """x + attention(norm_1(x)), and to that + mlp(norm_2(·))."""

    def __init__(
        self, name: str, norm_1: Norm, attention: Attention, norm_2: Norm, mlp: MLP | GatedMLP
    ):
        self.name = name  # its parameters' names begin so
        self.layer = attention.layer
        self.prefix = f"blocks.{self.layer}."  # … and its hooks' names so
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
        return [f"{self.prefix}{n}" for n in (*names, "hook_mlp_out", "hook_resid_post")]

    def forward(self, x: np.ndarray, ctx: Context) -> tuple[np.ndarray, BlockCache]:
        """x (N, C), the residual stream, may be added to in place -> x, cache."""
        hook = ctx.hooks.under(self.prefix)
        x = hook.rows("hook_resid_pre", x)
        y, norm_1 = self.norm_1.forward(x, hook.under("ln1."))
        read = ctx.keep(y, self.norm_1.output, norm_1)  # gives the backward y
        y, attention = self.attention.forward(y, read, ctx, hook.under("attn."))
        x = ctx.add(ctx.stream(x, y), hook.rows("hook_attn_out", y))

        x = hook.rows("hook_resid_mid", x)
        y, norm_2 = self.norm_2.forward(x, hook.under("ln2."))
        read = ctx.keep(y, self.norm_2.output, norm_2)
        y, mlp = self.mlp.forward(y, read, ctx, hook.under("mlp."))
        x = ctx.add(x, hook.rows("hook_mlp_out", y))
        return hook.rows("hook_resid_post", x), BlockCache(norm_1, attention, norm_2, mlp)

    def backward(self, dx: np.ndarray, cache: BlockCache, ctx: Context, g: Gradients) -> np.ndarray:
        """dx (N, C), the gradient of the residual stream, may be added to in place -> dx."""
        hook = ctx.grad_hooks.under(self.prefix)
        dx = hook.rows("hook_resid_post", dx)
        # From x + mlp(norm_2(x)): the branch reads the stream's gradient, and adds its own to it.
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
    heads: HeadsCache
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
        self, y: np.ndarray, read: Input, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, AttentionBranchCache]:
        """y (N, C) -> (N, C), with ctx.last_only_in this layer (B, C), cache."""
        y, qkv = self.qkv.forward(y, read, ctx.rng)  # (N, C) -> (N, (H + 2K) · D)
        q, k, v = self.split(y, ctx.batch)  # (B, H, T, D), twice (B, K, T, D)
        q, q_norm = self.prepared("q", q, ctx, hook)
        k, k_norm = self.prepared("k", k, ctx, hook)
        k, v, mask = ctx.keys_and_values(self.layer, k, hook.heads("hook_v", v))  # T -> S
        q, dropout = ctx.queries(self.layer, q), self.config.pattern_dropout
        z, heads = attend(q, k, v, self.scale, mask, dropout, ctx, hook)  # (N, H·D)
        y, out = self.out.forward(z, heads.merged, ctx.rng)  # (N, C)
        y, dropped = dropout_forward(y, self.config.branch_dropout, ctx.rng)
        return y, AttentionBranchCache(qkv, q_norm, k_norm, heads, out, dropped)

    def backward(
        self, dy: np.ndarray, cache: AttentionBranchCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C) -> dy (N, C)."""
        dy = dropout_backward(dy, cache.dropout)
        dz = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, H·D)
        dqkv = empty((len(dy), self.qkv.width), dy.dtype)
        dq, dk, dv = self.split(dqkv, ctx.batch)  # views, to be filled
        attend_backward(dz, cache.heads, ctx, hook, out=(dq, dk, dv))
        hook.heads_into("hook_v", dv)
        for name, d, norm in (("k", dk, cache.k_norm), ("q", dq, cache.q_norm)):
            before = self.prepared_backward(name, d, norm, ctx, g, hook)
            if before is not d:
                d[...] = before
        return self.qkv.backward(dqkv, cache.qkv, g)  # (N, (H + 2K) · D) -> (N, C)

    def split(self, qkv: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, (H + 2K) · D) -> views: queries (B, H, T, D), keys and values (B, K, T, D)."""
        k = self.config.heads  # where the keys begin
        v = k + self.config.kv_heads  # where the values begin
        x = split_heads(qkv, batch, v + self.config.kv_heads)
        return x[:, :k], x[:, k:v], x[:, v:]

    def prepared(
        self, name: str, x: np.ndarray, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, NormCache | None]:
        """Queries or keys as attention sees them: normalised (Qwen3), then turned (RoPE), where the
        family does so.  (B, H, T, D) -> the same, cache."""
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
        """(B, H, T, D) -> the same."""
        if self.rotates:
            assert ctx.rotation is not None
            dx = rope_backward(hook.heads(f"hook_rot_{name}", dx), ctx.rotation)
        if cache is not None:
            dx = self.norms[name].backward(hook(f"hook_{name}_normed", dx), cache, g)
        return hook.heads(f"hook_{name}", dx)


class MLPCache(NamedTuple):
    fc: ProjectionCache
    pre: np.ndarray  # (N, F), from which the activation gives its output and derivative
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
        self, y: np.ndarray, read: Input, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, MLPCache]:
        """y (N, C) -> (N, C), cache."""
        y, fc = self.fc.forward(y, read, ctx.rng)  # (N, C) -> (N, F)
        y, pre = self.act_forward(hook.rows("hook_pre", y))
        y = hook.rows("hook_post", y)
        y, out = self.out.forward(y, ctx.keep(y, self._activated, pre), ctx.rng)  # (N, F) -> (N, C)
        y, dropout = dropout_forward(y, self.config.branch_dropout, ctx.rng)
        return y, MLPCache(fc, pre, out, dropout)

    def backward(
        self, dy: np.ndarray, cache: MLPCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C) -> dy (N, C)."""
        dy = dropout_backward(dy, cache.dropout)
        dy = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, F)
        dy = self.act_backward(hook.rows("hook_post", dy), cache.pre)
        dy = hook.rows("hook_pre", dy)
        return self.fc.backward(dy, cache.fc, g)  # (N, F) -> (N, C)

    def _activated(self, pre: np.ndarray) -> np.ndarray:
        return self.act_forward(pre)[0]


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
        self, y: np.ndarray, read: Input, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, GatedMLPCache]:
        """y (N, C) -> (N, C), cache."""
        y, fc = self.fc.forward(y, read, ctx.rng)  # (N, C) -> (N, 2F)
        gate, up = np.split(y, 2, axis=1)  # views (N, F)
        gate, up = hook.rows("hook_pre", gate), hook.rows("hook_pre_linear", up)
        y, swiglu = swiglu_forward(gate, up)
        y = hook.rows("hook_post", y)
        y, out = self.out.forward(y, ctx.keep(y, self._gated, swiglu), ctx.rng)  # (N, F) -> (N, C)
        return y, GatedMLPCache(fc, swiglu, out)

    def backward(
        self, dy: np.ndarray, cache: GatedMLPCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C) -> dy (N, C)."""
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
