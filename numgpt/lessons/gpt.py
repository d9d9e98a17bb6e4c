"""All of GPT on one screen: GPT-2 forwards and backwards, AdamW, training, sampling.

    python -m numgpt.lessons.gpt                trains a small GPT on characters, and lets it write

`gpt` is made of plain NumPy and the functions of numgpt.layers, each derived in its own file. A
layer is a pair, y, cache = f_forward(x, …) and dx = f_backward(dy, cache), where dx is short for
∂loss/∂x; one with parameters returns their gradients as well. What numgpt.GPT adds to this page:
configs, files, hooks, adapters, frozen weights, dropout, a KV cache for decoding, less memory,
threads.
"""

from __future__ import annotations

import numpy as np

from numgpt.layers import (
    attention_backward,
    attention_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_cross_entropy,
    linear_forward,
    softmax_forward,
)


def split_heads(x, batch, n_head):  # (N, C) -> (B, H, T, D): a head is D of the C features
    return x.reshape(batch, len(x) // batch, n_head, -1).transpose(0, 2, 1, 3)


def merge_heads(x):  # (B, H, T, D) -> (N, C)
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0] * x.shape[2], -1)


def gpt(p, ids, targets, n_layer, n_head):
    """ids, targets (B, T), parameters by name -> loss, gradients by name; or logits, to sample."""
    (B, T), cache, g = ids.shape, {}, {}

    def forward(function, name, x):  # a layer with weight and bias
        y, cache[name] = function(x, p[f"{name}.weight"], p[f"{name}.bias"])
        return y

    def backward(function, name, dy):  # its input's gradient; its parameters' go to g
        dx, g[f"{name}.weight"], g[f"{name}.bias"] = function(dy, cache[name])
        return dx

    x = (p["wte"][ids] + p["wpe"][:T]).reshape(B * T, -1)  # (N, C), the residual stream
    for h in [f"h.{layer}" for layer in range(n_layer)]:
        y = forward(layernorm_forward, f"{h}.ln_1", x)
        y = forward(linear_forward, f"{h}.attn.c_attn", y)  # (N, C) -> (N, 3C)
        q, k, v = (split_heads(part, B, n_head) for part in np.split(y, 3, axis=1))
        y, cache[f"{h}.attn"] = attention_forward(q, k, v)  # (B, H, T, D)
        x = x + forward(linear_forward, f"{h}.attn.c_proj", merge_heads(y))
        y = forward(layernorm_forward, f"{h}.ln_2", x)
        y = forward(linear_forward, f"{h}.mlp.c_fc", y)  # (N, C) -> (N, 4C)
        y, cache[f"{h}.mlp"] = gelu_tanh_forward(y)
        x = x + forward(linear_forward, f"{h}.mlp.c_proj", y)  # (N, 4C) -> (N, C)
    y = forward(layernorm_forward, "ln_f", x)
    if targets is None:
        return (y @ p["wte"].T).reshape(B, T, -1)
    loss, dy, g["wte"] = linear_cross_entropy(y, p["wte"], targets.ravel())  # logits y wteᵀ

    # The lines above in reverse: through x + f(x) the stream's gradient dx becomes dx + f'(x)ᵀ dx.
    dx = backward(layernorm_backward, "ln_f", dy)
    for h in [f"h.{layer}" for layer in reversed(range(n_layer))]:
        dy = backward(linear_backward, f"{h}.mlp.c_proj", dx)
        dy = gelu_tanh_backward(dy, cache[f"{h}.mlp"])
        dy = backward(linear_backward, f"{h}.mlp.c_fc", dy)
        dx = dx + backward(layernorm_backward, f"{h}.ln_2", dy)
        dy = backward(linear_backward, f"{h}.attn.c_proj", dx)
        dq, dk, dv = attention_backward(split_heads(dy, B, n_head), cache[f"{h}.attn"])
        dy = np.hstack([merge_heads(dq), merge_heads(dk), merge_heads(dv)])
        dy = backward(linear_backward, f"{h}.attn.c_attn", dy)
        dx = dx + backward(layernorm_backward, f"{h}.ln_1", dy)
    dx = dx.reshape(B, T, -1)
    np.add.at(g["wte"], ids, dx)  # wte is embedding and unembedding: the second contribution
    g["wpe"] = np.zeros_like(p["wpe"])
    g["wpe"][:T] = dx.sum(axis=0)
    return loss, g


def new_parameters(rng, n_layer, width, context, vocab_size):
    """Matrices normal with a standard deviation of 0.02, gains 1, biases 0."""
    shapes = {"wte": (vocab_size, width), "wpe": (context, width)}
    for h in [f"h.{layer}" for layer in range(n_layer)]:
        shapes |= {f"{h}.ln_1.weight": (width,), f"{h}.ln_1.bias": (width,)}
        shapes |= {f"{h}.ln_2.weight": (width,), f"{h}.ln_2.bias": (width,)}
        for name, n, m in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{h}.{name}.weight": (n, m), f"{h}.{name}.bias": (m,)}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return {
        name: rng.normal(0, 0.02, shape).astype(np.float32)
        if len(shape) == 2
        else np.full(shape, 1.0 if name.endswith("weight") else 0.0, np.float32)
        for name, shape in shapes.items()
    }


def adamw(p, g, moments, step, lr, beta_1=0.9, beta_2=0.99, eps=1e-8, decay=0.1):
    """One update in place; step counts from 1 (Loshchilov & Hutter 2017, arXiv:1711.05101)."""
    for name, w in p.items():
        m, v = moments[name]
        m += (1 - beta_1) * (g[name] - m)  # exponential moving average of the gradient
        v += (1 - beta_2) * (g[name] ** 2 - v)  # and of its square
        if w.ndim == 2:
            w -= lr * decay * w  # weight decay, on matrices only
        m_hat, v_hat = m / (1 - beta_1**step), v / (1 - beta_2**step)  # bias correction
        w -= lr * m_hat / (np.sqrt(v_hat) + eps)


def main(steps=3000, n_layer=2, n_head=4, width=64, context=64, batch=16):
    """Train on the texts of Python's help(), which every machine has, then write a sample."""
    from pydoc_data.topics import topics

    text = "\n".join(topics.values()).encode("ascii", "ignore").decode()
    characters = sorted(set(text))
    data = np.searchsorted(characters, list(text))
    rng = np.random.default_rng(0)
    p = new_parameters(rng, n_layer, width, context, len(characters))
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in p.items()}
    for step in range(1, steps + 1):
        positions = rng.integers(len(data) - context, size=(batch, 1)) + np.arange(context)
        loss, g = gpt(p, data[positions], data[positions + 1], n_layer, n_head)
        # Warm-up over 50 steps, constant to half-time, then linear to 0.
        adamw(p, g, moments, step, lr=3e-3 * min(1, step / 50, 2 * (1 - step / (steps + 1))))
        if step % (steps // 10) == 0 or step == 1:
            print(f"step {step}  loss {loss:.3f}", flush=True)
    ids = [characters.index(c) for c in "The value "]
    for _ in range(400):
        logits = gpt(p, np.array([ids[-context:]]), None, n_layer, n_head)[0, -1]
        probabilities, _ = softmax_forward(logits.astype(np.float64) / 0.8)  # a temperature of 0.8
        ids.append(int(rng.choice(len(characters), p=probabilities)))
    print("".join(characters[id] for id in ids))


if __name__ == "__main__":
    main()
