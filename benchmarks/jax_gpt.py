"""GPT-2 in JAX: the other side of the rows that end in `-jax`.

Plain functions on a dictionary with Hugging Face's names and layouts. XLA compiles the whole step,
loss, gradient, clipping and AdamW, into one program, and gets the memory of the old weights and
moments for the new ones.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

LR, BETA1, BETA2, EPS, DECAY, CLIP = 1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0

Arrays = dict[str, jax.Array]


def initial(n_layer: int, n_embd: int, n_positions: int, vocab_size: int) -> Arrays:
    """Random weights."""
    C = n_embd
    shapes = {"wte": (vocab_size, C), "wpe": (n_positions, C)}
    for i in range(n_layer):
        projections = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C)}
        projections |= {"mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
        for name, shape in projections.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    weights = {
        name: jax.random.normal(key, shape) * (0.02 if len(shape) == 2 else 0)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    for norm in [f"h.{i}.ln_{n}" for i in range(n_layer) for n in (1, 2)] + ["ln_f"]:
        weights |= {f"{norm}.weight": jnp.ones(C), f"{norm}.bias": jnp.zeros(C)}
    return weights


def loss(weights: Arrays, ids: jax.Array, targets: jax.Array, n_head: int) -> jax.Array:
    """Mean cross-entropy of the targets (B, T)."""

    def linear(x: jax.Array, name: str) -> jax.Array:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    B, T = ids.shape
    x = weights["wte"][ids] + weights["wpe"][:T]
    for i in range(sum(name.endswith("ln_1.weight") for name in weights)):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.reshape(B, T, n_head, -1) for part in jnp.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.reshape(B, T, -1), f"h.{i}.attn.c_proj")
        y = jax.nn.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate=True)
        x = x + linear(y, f"h.{i}.mlp.c_proj")
    log_probs = jax.nn.log_softmax(norm(x, "ln_f") @ weights["wte"].T)
    return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1).mean()


@partial(jax.jit, static_argnums=6, donate_argnums=(0, 1, 2))
def step(
    weights: Arrays,
    m: Arrays,
    v: Arrays,
    t: int,
    ids: jax.Array,
    targets: jax.Array,
    n_head: int,
) -> tuple[Arrays, Arrays, Arrays, jax.Array]:
    """One step of AdamW, the t-th from 1 on -> weights, moments, loss."""
    value, grads = jax.value_and_grad(loss)(weights, ids, targets, n_head)
    norm = jnp.sqrt(sum(jnp.vdot(grad, grad) for grad in grads.values()))
    scale = jnp.minimum(1, CLIP / (norm + 1e-6))

    def update(w: jax.Array, m: jax.Array, v: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
        grad = grad * scale
        m = BETA1 * m + (1 - BETA1) * grad
        v = BETA2 * v + (1 - BETA2) * grad * grad
        change = m / (1 - BETA1**t) / (jnp.sqrt(v / (1 - BETA2**t)) + EPS)
        return w - LR * (change + DECAY * w * (w.ndim == 2)), m, v

    new = {name: update(w, m[name], v[name], grads[name]) for name, w in weights.items()}
    weights, m, v = ({name: parts[i] for name, parts in new.items()} for i in range(3))
    return weights, m, v, value
