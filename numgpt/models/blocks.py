"""A block, and the two branches that it has: attention, and a feed-forward layer, plain or gated.

    x = x + attention(norm_1(x))                      twice adding to the
    x = x + mlp(norm_2(x))                            residual stream x

Blocks normalise what a branch reads, not the stream itself ("pre-norm"). With dx the gradient of
the stream after x + f(x), that of the stream before it is

    dx + f'(x)ᵀ dx

one dx passes by the branch, another goes back through it, and the two are added. Each `backward`
below answers to the lines of its `forward` from the last to the first.

To lessons/gpt.py, which is all of this on one screen, this page adds dropout, heads that share keys
and values, QK-norm, RoPE, the gated MLP, a KV cache, hooks, and a way to save memory: what a
projection has read is kept for its dW or, in a large model, recomputed from the cache of the layer
before it (Context.save; LanguageModel decides by the size). Dropout, also that of LoRA inside the
projections, is on where there is a generator, ctx.rng. The KV cache and the shortcut for last
tokens are for decoding: where a backward follows, S = T and all rows are there.

N = B · T rows, C width, H query heads, K key and value heads, D head size, F feed-forward width, T
new tokens, S tokens that are attended to: layers/__init__.py has all letters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from numgpt import layers
from numgpt.layers.attention import AttentionCache
from numgpt.layers.dropout import DropoutCache
from numgpt.layers.swiglu import SwiGLUCache
from numgpt.models.config import Config
from numgpt.models.context import Context
from numgpt.models.hooks import Hooks
from numgpt.models.modules import Linear, Norm, NormCache, ProjectionCache, RMSNorm, Saved
from numgpt.models.parameters import Gradients
from numgpt.runtime import empty

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def split_heads(x: np.ndarray, batch: int, heads: int) -> np.ndarray:
    """(B·T, H·D) -> (B, H, T, D), a view."""
    time, size = len(x) // batch, x.shape[1] // heads
    return x.reshape(batch, time, heads, size).transpose(0, 2, 1, 3)


def merge_heads(z: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B·T, H·D); a view if the memory is laid out (B, T, H, D), as attention's."""
    batch, heads, time, size = z.shape
    return z.transpose(0, 2, 1, 3).reshape(batch * time, heads * size)


class BlockCache(NamedTuple):
    norm_1: NormCache
    attention: AttentionBranchCache
    dropout_1: DropoutCache
    norm_2: NormCache
    mlp: MLPCache | GatedMLPCache
    dropout_2: DropoutCache


class Block:
    """x = x + attention(norm_1(x)); x = x + mlp(norm_2(x))."""

    def __init__(
        self, name: str, norm_1: Norm, attention: Attention, norm_2: Norm, mlp: MLP | GatedMLP
    ):
        self.name = name  # before the dot in its parameters' names, h.0
        self.layer = attention.layer
        self.hook_prefix = f"blocks.{self.layer}."  # of its hooks' names
        self.config = attention.config
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
        hook, p = ctx.hooks.under(self.hook_prefix), self.config.branch_dropout
        x = hook.rows("hook_resid_pre", x)
        y, norm_1 = self.norm_1.forward(x, hook.under("ln1."))
        saved = ctx.save(y, self.norm_1.output, norm_1)  # for dW: y, or output(norm_1)
        y, attention = self.attention.forward(y, saved, ctx, hook.under("attn."))
        y, dropout_1 = layers.dropout_forward(y, p, ctx.rng)
        x = ctx.rows_like(y, x)  # the last tokens' alone, where attention gave only those
        x = ctx.add(x, hook.rows("hook_attn_out", y))
        x = hook.rows("hook_resid_mid", x)
        y, norm_2 = self.norm_2.forward(x, hook.under("ln2."))
        saved = ctx.save(y, self.norm_2.output, norm_2)
        y, mlp = self.mlp.forward(y, saved, ctx, hook.under("mlp."))
        y, dropout_2 = layers.dropout_forward(y, p, ctx.rng)
        x = hook.rows("hook_resid_post", ctx.add(x, hook.rows("hook_mlp_out", y)))
        return x, BlockCache(norm_1, attention, dropout_1, norm_2, mlp, dropout_2)

    def backward(self, dx: np.ndarray, cache: BlockCache, ctx: Context, g: Gradients) -> np.ndarray:
        """dx (N, C), the gradient of the residual stream, may be added to in place -> dx."""
        hook = ctx.grad_hooks.under(self.hook_prefix)
        dx = hook.rows("hook_resid_post", dx)
        dy = layers.dropout_backward(hook.rows("hook_mlp_out", dx), cache.dropout_2)
        dy = self.mlp.backward(dy, cache.mlp, g, hook.under("mlp."))  # type: ignore[arg-type]
        dx = ctx.add(dx, self.norm_2.backward(dy, cache.norm_2, g, hook.under("ln2.")))
        dx = hook.rows("hook_resid_mid", dx)
        dy = layers.dropout_backward(hook.rows("hook_attn_out", dx), cache.dropout_1)
        dy = self.attention.backward(dy, cache.attention, ctx, g, hook.under("attn."))
        dx = ctx.add(dx, self.norm_1.backward(dy, cache.norm_1, g, hook.under("ln1.")))
        return hook.rows("hook_resid_pre", dx)


class AttentionBranchCache(NamedTuple):
    qkv: ProjectionCache
    q_norm: NormCache | None
    k_norm: NormCache | None
    attention: AttentionCache
    replacement: np.ndarray | None  # (B, H, T, S), of the pattern, by a hook
    out: ProjectionCache


class Attention:
    """q, k, v = heads of y W_qkv + b;   out = merged(attention(q, k, v)) W_out + b.

    With fewer key and value heads than query heads, query head h attends to key and value head
    h // (H / K), and a key's or value's gradient is the sum over its group of queries
    (layers/attention.py).
    """

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
        made = ["hook_{}"]
        if self.norms:
            made.append("hook_{}_normed")
        if self.rotates:
            made.append("hook_rot_{}")
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
        k, v, key_mask = ctx.keys_and_values(self.layer, k, hook.heads("hook_v", v))  # T -> S
        q = ctx.queries(self.layer, q)  # the last tokens' alone, where only those are wanted
        dropout = self.config.attention_dropout
        z, attention = layers.attention_forward(q, k, v, self.scale, key_mask, dropout, ctx.rng)
        z, replacement = self.with_pattern(z, attention, hook)  # (B, H, T, D)
        z = hook.heads("hook_z", z)
        saved = partial(merge_heads, z)  # z is kept anyway
        y, out = self.out.forward(saved(), saved, ctx.rng)  # (N, H·D) -> (N, C)
        return y, AttentionBranchCache(qkv, q_norm, k_norm, attention, replacement, out)

    def backward(
        self, dy: np.ndarray, cache: AttentionBranchCache, ctx: Context, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dz = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, H·D)
        dz = hook.heads("hook_z", split_heads(dz, ctx.batch, self.config.heads))
        dqkv = empty((len(dy), self.qkv.width), dy.dtype)  # one array, as qkv is one product
        dq, dk, dv = self.split(dqkv, ctx.batch)  # views of it, written by what follows
        self.attend_backward(dz, cache, hook, out=(dq, dk, dv))
        dv_raw = hook.heads("hook_v", dv)
        dk_raw = self.prepared_backward("k", dk, cache.k_norm, ctx, g, hook)
        dq_raw = self.prepared_backward("q", dq, cache.q_norm, ctx, g, hook)
        for d, raw in ((dv, dv_raw), (dk, dk_raw), (dq, dq_raw)):
            if raw is not d:  # a hook, a norm or RoPE has made a new array
                d[...] = raw
        return self.qkv.backward(dqkv, cache.qkv, g)  # (N, (H + 2K) · D) -> (N, C)

    def split(self, qkv: np.ndarray, batch: int) -> Triple:
        """(N, (H + 2K) · D) -> views: queries (B, H, T, D), keys and values (B, K, T, D)."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        x = split_heads(qkv, batch, heads + 2 * kv_heads)
        return x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]

    def with_pattern(
        self, z: np.ndarray, cache: AttentionCache, hook: Hooks
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """z (B, H, T, D) itself; or where a hook returns another pattern its z, and the pattern."""
        if not hook.has("hook_pattern"):
            return z, None
        computed = layers.attention_pattern(cache)
        pattern = hook("hook_pattern", computed)
        if pattern is computed:
            return z, None
        return layers.pattern_forward(pattern, cache), pattern

    def attend_backward(
        self, dz: np.ndarray, cache: AttentionBranchCache, hook: Hooks, out: Triple
    ) -> None:
        """dz (B, H, T, D) -> dq (B, H, T, D), dk and dv (B, K, S, D), written into `out`."""
        attention, replacement = cache.attention, cache.replacement
        if replacement is None and not hook.has("hook_pattern"):
            layers.attention_backward(dz, attention, out)
            return
        # dv = (m · replacement)ᵀ dz, as v met that; the softmax takes its derivative at its own p.
        p = layers.attention_pattern(attention)
        dp, dv = layers.pattern_backward(dz, p if replacement is None else replacement, attention)
        dp_hooked = hook("hook_pattern", dp)
        if replacement is None and dp_hooked is dp:  # then no bit changes
            layers.attention_backward(dz, attention, out)
            return
        dq, dk = layers.scores_backward(dp_hooked, p, attention)
        for target, gradient in zip(out, (dq, dk, dv), strict=True):
            target[...] = gradient

    def prepared(
        self, name: str, x: np.ndarray, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, NormCache | None]:
        """Queries or keys with QK-norm (Qwen3), then RoPE, where the family has them.  (B, H or K,
        T, D) -> the same shape, cache."""
        x, cache = hook.heads(f"hook_{name}", x), None
        if self.norms:
            x, cache = self.norms[name].forward(x)
            x = hook(f"hook_{name}_normed", x)  # as TransformerLens shows it, (B, H, T, D)
        if self.rotates:
            assert ctx.rotation is not None
            x, _ = layers.rope_forward(x, ctx.rotation)
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
        """(B, H or K, T, D), the gradient of what `prepared` gave -> of what it was given."""
        if self.rotates:
            assert ctx.rotation is not None
            dx = layers.rope_backward(hook.heads(f"hook_rot_{name}", dx), ctx.rotation)
        if cache is not None:
            dx = self.norms[name].backward(hook(f"hook_{name}_normed", dx), cache, g)
        return hook.heads(f"hook_{name}", dx)


class MLPCache(NamedTuple):
    fc: ProjectionCache
    activation: np.ndarray  # (N, F), what its backward reads
    out: ProjectionCache


class MLP:
    """out = activation(y W_fc + b) W_out + b."""

    hook_names = ("hook_pre", "hook_post")

    def __init__(self, fc: Linear, out: Linear, activation: tuple[Callable, Callable]):
        self.fc, self.out = fc, out
        self.act_forward, self.act_backward = activation

    def forward(
        self, y: np.ndarray, saved: Saved, ctx: Context, hook: Hooks
    ) -> tuple[np.ndarray, MLPCache]:
        """y (N, C) -> (N, C), cache."""
        y, fc = self.fc.forward(y, saved, ctx.rng)  # (N, C) -> (N, F)
        y, activation = self.act_forward(hook.rows("hook_pre", y))
        y = hook.rows("hook_post", y)
        saved = ctx.save(y, lambda kept: self.act_forward(kept)[0], activation)
        y, out = self.out.forward(y, saved, ctx.rng)  # (N, F) -> (N, C)
        return y, MLPCache(fc, activation, out)

    def backward(self, dy: np.ndarray, cache: MLPCache, g: Gradients, hook: Hooks) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dy = self.out.backward(dy, cache.out, g)  # (N, C) -> (N, F)
        dy = self.act_backward(hook.rows("hook_post", dy), cache.activation)
        dy = hook.rows("hook_pre", dy)
        return self.fc.backward(dy, cache.fc, g)  # (N, F) -> (N, C)


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
        gate, up = y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]  # views (N, F)
        gate, up = hook.rows("hook_pre", gate), hook.rows("hook_pre_linear", up)
        y, swiglu = layers.swiglu_forward(gate, up)
        y = hook.rows("hook_post", y)
        saved = ctx.save(y, lambda kept: layers.swiglu_forward(*kept)[0], swiglu)
        y, out = self.out.forward(y, saved, ctx.rng)  # (N, F) -> (N, C)
        return y, GatedMLPCache(fc, swiglu, out)

    def backward(
        self, dy: np.ndarray, cache: GatedMLPCache, g: Gradients, hook: Hooks
    ) -> np.ndarray:
        """dy (N, C), the gradient of what forward gave -> of what it was given, (N, C)."""
        dy = hook.rows("hook_post", self.out.backward(dy, cache.out, g))  # (N, C) -> (N, F)
        dgate_up = empty((len(dy), self.fc.width), dy.dtype)
        dgate, dup = np.split(dgate_up, 2, axis=1)  # views, to be filled
        layers.swiglu_backward(dy, cache.swiglu, out=(dgate, dup))
        hook.rows_into("hook_pre", dgate)
        hook.rows_into("hook_pre_linear", dup)
        return self.fc.backward(dgate_up, cache.fc, g)  # (N, 2F) -> (N, C)
