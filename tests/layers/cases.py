"""Every layer as one case: how to draw inputs, what we compute, what PyTorch computes.

Three tests use them: recorded answers (goldens), live comparison on drawn shapes, numerical
derivatives. A case's `ours` and `theirs` map arrays by name to results by name: "y", and "d" + name
for each gradient, for the loss Σ y · dy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numgpt import layers
from numgpt.runtime import Accumulator

Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    dimensions: tuple[str, ...]
    shapes: list[tuple[int, ...]]  # values of the dimensions, for the recorded answers
    draw: Callable[..., Arrays]  # (rng, *dimensions) -> inputs and dy, float64
    ours: Callable[[Arrays], Arrays]
    theirs: Callable[[Arrays], Arrays]
    differentiable: tuple[str, ...]
    largest: int = 9  # of each drawn dimension
    smallest_width: int = 1


def torch_results(inputs: Arrays, wanted: tuple[str, ...], function: Callable) -> Arrays:
    """y and the gradients of Σ y · dy, by autograd."""
    import torch

    tensors = {name: torch.tensor(array) for name, array in inputs.items()}
    for name in wanted:
        tensors[name].requires_grad_()
    y = function(**{name: tensor for name, tensor in tensors.items() if name != "dy"})
    (y * tensors["dy"]).sum().backward()
    results = {"d" + name: tensors[name].grad.numpy() for name in wanted}
    return {"y": y.detach().numpy()} | results


def functional():
    import torch

    return torch.nn.functional


# --- linear ---


def draw_linear(rng, rows, width_in, width_out):
    return {
        "x": rng.normal(size=(rows, width_in)),
        "weight": rng.normal(size=(width_in, width_out)),
        "bias": rng.normal(size=width_out),
        "dy": rng.normal(size=(rows, width_out)),
    }


def our_linear(a, with_bias=True):
    y, cache = layers.linear_forward(a["x"], a["weight"], a["bias"] if with_bias else None)
    dx, dweight, dbias = layers.linear_backward(a["dy"], cache)
    return {"y": y, "dx": dx, "dweight": dweight} | ({"dbias": dbias} if with_bias else {})


def their_linear(a):
    return torch_results(a, ("x", "weight", "bias"), lambda x, weight, bias: x @ weight + bias)


def their_linear_without_bias(a):
    return torch_results(a, ("x", "weight"), lambda x, weight, bias: x @ weight)


# --- lora ---


def draw_lora(rng, rows, width_in, width_out, rank):
    return {
        "x": rng.normal(size=(rows, width_in)),
        "a": rng.normal(size=(rank, width_in)),
        "b": rng.normal(size=(width_out, rank)),
        "dy": rng.normal(size=(rows, width_out)),
    }


def our_lora(a):
    y, cache = layers.lora_forward(a["x"], a["a"], a["b"], 0.75)
    dx, da, db = layers.lora_backward(a["dy"], cache)
    return {"y": y, "dx": dx, "da": da, "db": db}


def their_lora(a):
    linear = functional().linear
    return torch_results(a, ("x", "a", "b"), lambda x, a, b: 0.75 * linear(linear(x, a), b))


# --- embedding ---


def draw_embedding(rng, rows, vocabulary, width):
    return {
        "ids": rng.integers(vocabulary, size=rows),
        "weight": rng.normal(size=(vocabulary, width)),
        "dy": rng.normal(size=(rows, width)),
    }


def our_embedding(a):
    y, cache = layers.embedding_forward(a["ids"], a["weight"])
    dweight = layers.embedding_backward(a["dy"], cache)
    return {"y": y, "dweight": dweight}


def their_embedding(a):
    return torch_results(a, ("weight",), lambda ids, weight: functional().embedding(ids, weight))


# --- layer normalisation ---


def draw_layernorm(rng, rows, width):
    return {
        "x": rng.normal(size=(rows, width)) + rng.normal(size=(rows, 1)),
        "weight": rng.normal(size=width),
        "bias": rng.normal(size=width),
        "dy": rng.normal(size=(rows, width)),
    }


def our_layernorm(a):
    y, cache = layers.layernorm_forward(a["x"], a["weight"], a["bias"], 1e-3)
    dx, dweight, dbias = layers.layernorm_backward(a["dy"], cache)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


def their_layernorm(a):
    return torch_results(
        a,
        ("x", "weight", "bias"),
        lambda x, weight, bias: functional().layer_norm(x, weight.shape, weight, bias, 1e-3),
    )


# --- root-mean-square normalisation ---


def draw_rmsnorm(rng, rows, width):
    a = draw_layernorm(rng, rows, width)
    del a["bias"]
    return a


def our_rmsnorm(a):
    y, cache = layers.rmsnorm_forward(a["x"], a["weight"], 1e-3)
    dx, dweight = layers.rmsnorm_backward(a["dy"], cache)
    return {"y": y, "dx": dx, "dweight": dweight}


def their_rmsnorm(a):
    return torch_results(
        a,
        ("x", "weight"),
        lambda x, weight: functional().rms_norm(x, weight.shape, weight, 1e-3),
    )


# --- softmax ---


def draw_softmax(rng, rows, vocabulary):
    return {"x": 4 * rng.normal(size=(rows, vocabulary)), "dy": rng.normal(size=(rows, vocabulary))}


def our_softmax(a):
    y, cache = layers.softmax_forward(a["x"])
    return {"y": y, "dx": layers.softmax_backward(a["dy"], cache)}


def their_softmax(a):
    return torch_results(a, ("x",), lambda x: functional().softmax(x, -1))


# --- rotary position embedding ---

SCALING = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def draw_rope(rng, batch, heads, queries, half):
    shape = batch, heads, queries, 2 * half
    return {
        "x": rng.normal(size=shape),
        "positions": rng.integers(50, size=(batch, queries)),
        "dy": rng.normal(size=shape),
    }


def our_rope(scaled=False):
    def ours(a):
        frequencies = layers.rope_frequencies(a["x"].shape[-1], base=500.0)
        if scaled:
            frequencies = layers.llama3_frequencies(frequencies, **SCALING)
        rotation = layers.rope_rotation(a["positions"], frequencies, a["x"].dtype)
        y, cache = layers.rope_forward(a["x"], rotation)
        return {"y": y, "dx": layers.rope_backward(a["dy"], cache)}

    return ours


def their_rope(scaled=False):
    """The paper's form: each pair as a complex number, multiplied by exp(i t ω)."""

    def theirs(a):
        import torch

        size = a["x"].shape[-1]
        frequencies = []
        for pair in range(size // 2):
            frequency = 500.0 ** (-2 * pair / size)
            if scaled:  # as the release of Llama 3.1 writes it, in wavelengths
                length, wavelength = 32, 2 * np.pi / frequency
                smooth = (length / wavelength - 1.0) / (4.0 - 1.0)
                if wavelength > length / 1.0:
                    frequency = frequency / 4.0
                elif wavelength >= length / 4.0:
                    frequency = (1 - smooth) * frequency / 4.0 + smooth * frequency
            frequencies.append(frequency)
        angles = torch.tensor(a["positions"])[:, None, :, None] * torch.tensor(
            frequencies, dtype=torch.float64
        )

        def rotate(x, positions):
            dtype = torch.complex64 if x.dtype == torch.float32 else torch.complex128
            turn = torch.polar(torch.ones_like(angles), angles).to(dtype)
            turned = torch.complex(*x.chunk(2, dim=-1)) * turn
            return torch.cat([turned.real, turned.imag], dim=-1)

        return torch_results(a, ("x",), rotate)

    return theirs


# --- activations ---


def draw_activation(rng, rows, width):
    return {"x": 3 * rng.normal(size=(rows, width)), "dy": rng.normal(size=(rows, width))}


def our_activation(forward, backward):
    def ours(a):
        y, cache = forward(a["x"])
        return {"y": y, "dx": backward(a["dy"], cache)}

    return ours


def their_activation(function):
    return lambda a: torch_results(a, ("x",), lambda x: function(x))


def draw_swiglu(rng, rows, width):
    gate, up, dy = rng.normal(size=(3, rows, width))
    return {"gate": 3 * gate, "up": up, "dy": dy}


def our_swiglu(a):
    y, cache = layers.swiglu_forward(a["gate"], a["up"])
    dgate, dup = layers.swiglu_backward(a["dy"], cache)
    return {"y": y, "dgate": dgate, "dup": dup}


def their_swiglu(a):
    return torch_results(a, ("gate", "up"), lambda gate, up: functional().silu(gate) * up)


# --- attention ---


def draw_attention(rng, batch, heads, queries, past, size):
    q, k, v, dy = (
        rng.normal(size=(batch, heads, time, size))
        for time in (queries, queries + past, queries + past, queries)
    )
    return {"q": q, "k": k, "v": v, "dy": dy}


def draw_grouped_attention(rng, batch, key_heads, group, queries, past, size):
    a = draw_attention(rng, batch, key_heads * group, queries, past, size)
    return a | {name: a[name][:, :key_heads] for name in ("k", "v")}


def our_attention(a):
    y, cache = layers.attention_forward(a["q"], a["k"], a["v"])
    dq, dk, dv = layers.attention_backward(a["dy"], cache)
    return {"y": y, "dq": dq, "dk": dk, "dv": dv}


def their_attention(a):
    import torch

    queries, keys = a["q"].shape[2], a["k"].shape[2]
    mask = torch.ones(queries, keys).tril(keys - queries).bool()
    return torch_results(
        a,
        ("q", "k", "v"),
        lambda q, k, v: functional().scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        ),
    )


# --- cross-entropy ---


def draw_cross_entropy(rng, rows, vocabulary):
    targets = rng.integers(vocabulary, size=rows)
    targets[1::3] = layers.IGNORE_INDEX  # never the first: some target counts
    return {
        "x": 4 * rng.normal(size=(rows, vocabulary)),
        "targets": targets,
        "dy": rng.normal(size=()),
    }


def draw_linear_cross_entropy(rng, rows, vocabulary, width):
    a = draw_cross_entropy(rng, rows, vocabulary)
    a["x"] = rng.normal(size=(rows, width))
    a["weight"] = rng.normal(size=(vocabulary, width))
    return a


def our_linear_cross_entropy(a):
    """With the weights dy/n: those of dy times the mean."""
    x, weight, targets = a["x"], a["weight"], a["targets"]
    weights = layers.mean_weights(targets, x.dtype)
    dweight = Accumulator.like(weight)
    loss, _, _ = layers.linear_cross_entropy(x, weight, targets)
    scaled, dx, given = layers.linear_cross_entropy(x, weight, targets, a["dy"] * weights, dweight)
    assert given is dweight.out
    np.testing.assert_allclose(scaled, float(a["dy"]) * loss, rtol=1e-5)
    return {"y": np.asarray(loss, dtype=x.dtype), "dx": dx, "dweight": dweight.out}


def their_linear_cross_entropy(a):
    return torch_results(
        a,
        ("x", "weight"),
        lambda x, weight, targets: functional().cross_entropy(x @ weight.T, targets),
    )


def draw_log_probs(rng, rows, vocabulary, width):
    return draw_linear_cross_entropy(rng, rows, vocabulary, width) | {"dy": rng.normal(size=rows)}


def our_log_probs(a):
    y, cache = layers.linear_log_probs_forward(a["x"], a["weight"], a["targets"])
    dx, dweight = layers.linear_log_probs_backward(a["dy"], cache)
    return {"y": y, "dx": dx, "dweight": dweight}


def their_log_probs(a):
    return torch_results(
        a,
        ("x", "weight"),
        lambda x, weight, targets: (
            -functional().cross_entropy(x @ weight.T, targets, reduction="none")
        ),
    )


TEMPERATURE = 0.7


def draw_policy(rng, rows, vocabulary, width):
    dy = rng.normal(size=(2, rows))
    return draw_linear_cross_entropy(rng, rows, vocabulary, width) | {"dy": dy}


def our_policy(a):
    """Log-probabilities at a temperature, and entropies."""
    x, weight, targets = a["x"], a["weight"], a["targets"]
    logp, cache = layers.linear_log_probs_forward(x, weight, targets, TEMPERATURE, entropy=True)
    dx, dweight = layers.linear_log_probs_backward(a["dy"][0], cache, dentropy=a["dy"][1])
    return {"y": np.stack([logp, cache.entropy]), "dx": dx, "dweight": dweight}


def their_policy(a):
    import torch

    def both(x, weight, targets):
        log_p = functional().log_softmax(x @ weight.T / TEMPERATURE, -1)
        counts = targets != -100
        logp = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        return torch.stack([torch.where(counts, y, 0) for y in (logp, entropy)])

    return torch_results(a, ("x", "weight"), both)


ROWS_AND_WIDTH = [(1, 1), (5, 7), (64, 33), (7, 768)]

CASES = {
    "linear": Case(
        ("rows", "width_in", "width_out"),
        [(1, 1, 1), (5, 7, 3), (33, 64, 17)],
        draw_linear,
        our_linear,
        their_linear,
        ("x", "weight", "bias"),
    ),
    "linear_without_bias": Case(
        ("rows", "width_in", "width_out"),
        [(1, 3, 2), (9, 5, 31)],
        draw_linear,
        lambda a: our_linear(a, with_bias=False),
        their_linear_without_bias,
        ("x", "weight"),
    ),
    "lora": Case(
        ("rows", "width_in", "width_out", "rank"),
        [(1, 1, 1, 1), (5, 7, 3, 2), (33, 64, 17, 8)],
        draw_lora,
        our_lora,
        their_lora,
        ("x", "a", "b"),
    ),
    "embedding": Case(
        ("rows", "vocabulary", "width"),
        [(1, 1, 1), (40, 5, 7), (17, 100, 16)],
        draw_embedding,
        our_embedding,
        their_embedding,
        ("weight",),
    ),
    "layernorm": Case(
        ("rows", "width"),
        ROWS_AND_WIDTH,
        draw_layernorm,
        our_layernorm,
        their_layernorm,
        ("x", "weight", "bias"),
        # One value has no variance, and two have hardly any now and then: both sides' rounding is
        # then multiplied by 1/sqrt(eps).
        smallest_width=4,
    ),
    "rmsnorm": Case(
        ("rows", "width"),
        [(1, 1), (5, 7), (64, 33)],
        draw_rmsnorm,
        our_rmsnorm,
        their_rmsnorm,
        ("x", "weight"),
    ),
    **{
        name: Case(
            ("batch", "heads", "queries", "half"),
            [(1, 1, 1, 1), (2, 3, 5, 4), (1, 2, 17, 8)],
            draw_rope,
            our_rope(**kind),
            their_rope(**kind),
            ("x",),
            largest=5,
        )
        for name, kind in {
            "rope": {},
            "rope_llama3": {"scaled": True},
        }.items()
    },
    "swiglu": Case(
        ("rows", "width"),
        [(1, 1), (5, 7), (64, 33)],
        draw_swiglu,
        our_swiglu,
        their_swiglu,
        ("gate", "up"),
    ),
    "gelu_tanh": Case(
        ("rows", "width"),
        ROWS_AND_WIDTH,
        draw_activation,
        our_activation(layers.gelu_tanh_forward, layers.gelu_tanh_backward),
        their_activation(lambda x: functional().gelu(x, approximate="tanh")),
        ("x",),
    ),
    "gelu_erf": Case(
        ("rows", "width"),
        ROWS_AND_WIDTH,
        draw_activation,
        our_activation(layers.gelu_erf_forward, layers.gelu_erf_backward),
        their_activation(lambda x: functional().gelu(x)),
        ("x",),
    ),
    "relu": Case(
        ("rows", "width"),
        ROWS_AND_WIDTH,
        draw_activation,
        our_activation(layers.relu_forward, layers.relu_backward),
        their_activation(lambda x: functional().relu(x)),
        ("x",),
    ),
    "attention": Case(
        ("batch", "heads", "queries", "past", "size"),
        [(1, 1, 1, 0, 1), (2, 3, 5, 0, 7), (1, 2, 1, 9, 8), (2, 1, 70, 3, 5), (1, 2, 130, 0, 16)],
        draw_attention,
        our_attention,
        their_attention,
        ("q", "k", "v"),
        largest=5,
    ),
    "grouped_attention": Case(
        ("batch", "key_heads", "group", "queries", "past", "size"),
        [(1, 1, 1, 1, 0, 1), (2, 1, 3, 5, 0, 7), (1, 2, 2, 1, 9, 8), (2, 3, 2, 70, 3, 5)],
        draw_grouped_attention,
        our_attention,
        their_attention,
        ("q", "k", "v"),
        largest=4,
    ),
    "softmax": Case(
        ("rows", "vocabulary"),
        [(1, 2), (7, 11), (20, 257)],
        draw_softmax,
        our_softmax,
        their_softmax,
        ("x",),
    ),
    "linear_cross_entropy": Case(
        ("rows", "vocabulary", "width"),
        [(1, 2, 1), (7, 11, 5), (20, 257, 16)],
        draw_linear_cross_entropy,
        our_linear_cross_entropy,
        their_linear_cross_entropy,
        ("x", "weight"),
    ),
    "linear_log_probs": Case(
        ("rows", "vocabulary", "width"),
        [(1, 2, 1), (7, 11, 5), (20, 257, 16)],
        draw_log_probs,
        our_log_probs,
        their_log_probs,
        ("x", "weight"),
    ),
    "linear_log_probs of a policy": Case(
        ("rows", "vocabulary", "width"),
        [(1, 2, 1), (7, 11, 5), (20, 257, 16)],
        draw_policy,
        our_policy,
        their_policy,
        ("x", "weight"),
    ),
}


def as_dtype(arrays: Arrays, dtype: np.dtype) -> Arrays:
    """Floating-point arrays in the dtype, others as they are."""
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def golden_inputs(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Arrays:
    """The inputs of a recorded answer; drawn again from a fixed seed, so only the answers are
    stored."""
    rng = np.random.default_rng([*name.encode(), *shape])
    return as_dtype(CASES[name].draw(rng, *shape), dtype)
