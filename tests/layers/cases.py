"""Every layer as one case: how to draw inputs, what we compute, what PyTorch computes.

Three tests use them: recorded answers (goldens), live comparison on drawn shapes, numerical
derivatives. A case's `ours` and `theirs` map arrays by name to results by name: "y", and "d" + name
for each gradient, for the loss Σ y · dy.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numgpt import layers
from numgpt.runtime import Accumulator

Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    shapes: list[tuple[int, ...]]  # values of the dimensions, for the recorded answers
    draw: Callable[..., Arrays]  # (rng, *dimensions) -> inputs and dy, float64
    ours: Callable[[Arrays], Arrays]
    formula: Callable  # in PyTorch: inputs by name, without dy -> y
    differentiable: tuple[str, ...]
    largest: int = 9  # of each drawn dimension
    smallest_width: int = 1

    @property
    def dimensions(self) -> list[str]:
        return list(inspect.signature(self.draw).parameters)[1:]

    def theirs(self, inputs: Arrays) -> Arrays:
        """y and the gradients of Σ y · dy, by autograd."""
        import torch

        tensors = {name: torch.tensor(array) for name, array in inputs.items()}
        for name in self.differentiable:
            tensors[name].requires_grad_()
        y = self.formula(**{name: tensor for name, tensor in tensors.items() if name != "dy"})
        (y * tensors["dy"]).sum().backward()
        results = {"d" + name: tensors[name].grad.numpy() for name in self.differentiable}
        return {"y": y.detach().numpy()} | results


def functional():
    import torch

    return torch.nn.functional


def normal(rng, **shapes) -> Arrays:
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def layer(name: str, inputs: str, gradients: str, *options):
    """A layer of numgpt, by the names of what its forward takes and its backward gives."""
    forward, backward = (getattr(layers, f"{name}_{way}") for way in ("forward", "backward"))

    def ours(a):
        y, cache = forward(*(a[name] for name in inputs.split()), *options)
        given = backward(a["dy"], cache)
        given = given if isinstance(given, tuple) else (given,)
        named = zip(gradients.split(), given, strict=True)
        return {"y": y} | {name: array for name, array in named if array is not None}

    return ours


def draw_linear(rng, rows, width_in, width_out):
    shapes = {"x": (rows, width_in), "weight": (width_in, width_out), "bias": width_out}
    return normal(rng, **shapes, dy=(rows, width_out))


def draw_layernorm(rng, rows, width):
    x = rng.normal(size=(rows, width)) + rng.normal(size=(rows, 1))
    return {"x": x} | normal(rng, weight=width, bias=width, dy=(rows, width))


def draw_rmsnorm(rng, rows, width):
    a = draw_layernorm(rng, rows, width)
    del a["bias"]
    return a


# --- rotary position embedding ---

SCALING = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def draw_rope(rng, batch, heads, queries, half):
    shape = batch, heads, queries, 2 * half
    x, positions = rng.normal(size=shape), rng.integers(50, size=(batch, queries))
    return {"x": x, "positions": positions, "dy": rng.normal(size=shape)}


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

    def rotate(x, positions):
        import torch

        frequencies, size = [], x.shape[-1]
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
        angles = positions[:, None, :, None] * torch.tensor(frequencies, dtype=torch.float64)
        dtype = torch.complex64 if x.dtype == torch.float32 else torch.complex128
        turn = torch.polar(torch.ones_like(angles), angles).to(dtype)
        turned = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    return rotate


# --- activations ---


def draw_activation(rng, rows, width):
    return {"x": 3 * rng.normal(size=(rows, width)), "dy": rng.normal(size=(rows, width))}


def draw_swiglu(rng, rows, width):
    gate, up, dy = rng.normal(size=(3, rows, width))
    return {"gate": 3 * gate, "up": up, "dy": dy}


# --- attention ---


def draw_attention(rng, batch, heads, queries, past, size):
    of_query, of_key = ((batch, heads, time, size) for time in (queries, queries + past))
    return normal(rng, q=of_query, k=of_key, v=of_key, dy=of_query)


def draw_grouped_attention(rng, batch, key_heads, group, queries, past, size):
    a = draw_attention(rng, batch, key_heads * group, queries, past, size)
    return a | {name: a[name][:, :key_heads] for name in ("k", "v")}


def their_attention(q, k, v):
    queries, keys = q.shape[2], k.shape[2]
    mask = q.new_ones(queries, keys).tril(keys - queries).bool()
    return functional().scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


# --- cross-entropy ---


def draw_cross_entropy(rng, rows, vocabulary, width):
    targets = rng.integers(vocabulary, size=rows)
    targets[1::3] = layers.IGNORE_INDEX  # never the first: some target counts
    rng.normal(size=(rows, vocabulary))  # as the recorded answers were drawn
    dy = rng.normal(size=())
    shapes = {"x": (rows, width), "weight": (vocabulary, width)}
    return {"targets": targets, "dy": dy} | normal(rng, **shapes)


def our_cross_entropy(a):
    """With the weights dy/n: those of dy times the mean."""
    x, weight, targets = a["x"], a["weight"], a["targets"]
    weights = layers.mean_weights(targets, x.dtype)
    dweight = Accumulator.like(weight)
    loss, _, _ = layers.linear_cross_entropy(x, weight, targets)
    scaled, dx, given = layers.linear_cross_entropy(x, weight, targets, a["dy"] * weights, dweight)
    assert given is dweight.out
    np.testing.assert_allclose(scaled, float(a["dy"]) * loss, rtol=1e-5)
    return {"y": np.asarray(loss, dtype=x.dtype), "dx": dx, "dweight": dweight.out}


def draw_log_probs(rng, rows, vocabulary, width):
    return draw_cross_entropy(rng, rows, vocabulary, width) | {"dy": rng.normal(size=rows)}


def their_log_probs(x, weight, targets):
    return -functional().cross_entropy(x @ weight.T, targets, reduction="none")


TEMPERATURE = 0.7


def draw_policy(rng, rows, vocabulary, width):
    dy = rng.normal(size=(2, rows))
    return draw_cross_entropy(rng, rows, vocabulary, width) | {"dy": dy}


def our_policy(a):
    """Log-probabilities at a temperature, and entropies."""
    x, weight, targets = a["x"], a["weight"], a["targets"]
    logp, cache = layers.linear_log_probs_forward(x, weight, targets, TEMPERATURE, entropy=True)
    dx, dweight = layers.linear_log_probs_backward(a["dy"][0], cache, dentropy=a["dy"][1])
    return {"y": np.stack([logp, cache.entropy]), "dx": dx, "dweight": dweight}


def their_policy(x, weight, targets):
    import torch

    log_p = functional().log_softmax(x @ weight.T / TEMPERATURE, -1)
    logp = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.stack([torch.where(targets != -100, y, 0) for y in (logp, entropy)])


ROWS_AND_WIDTH = [(1, 1), (5, 7), (64, 33), (7, 768)]
OF_LOSS = [(1, 2, 1), (7, 11, 5), (20, 257, 16)]

CASES = {
    "linear": Case(
        [(1, 1, 1), (5, 7, 3), (33, 64, 17)],
        draw_linear,
        layer("linear", "x weight bias", "dx dweight dbias"),
        lambda x, weight, bias: x @ weight + bias,
        ("x", "weight", "bias"),
    ),
    "linear_without_bias": Case(
        [(1, 3, 2), (9, 5, 31)],
        draw_linear,
        layer("linear", "x weight", "dx dweight dbias"),
        lambda x, weight, bias: x @ weight,
        ("x", "weight"),
    ),
    "lora": Case(
        [(1, 1, 1, 1), (5, 7, 3, 2), (33, 64, 17, 8)],
        lambda rng, rows, width_in, width_out, rank: normal(
            rng, x=(rows, width_in), a=(rank, width_in), b=(width_out, rank), dy=(rows, width_out)
        ),
        layer("lora", "x a b", "dx da db", 0.75),
        lambda x, a, b: 0.75 * functional().linear(functional().linear(x, a), b),
        ("x", "a", "b"),
    ),
    "embedding": Case(
        [(1, 1, 1), (40, 5, 7), (17, 100, 16)],
        lambda rng, rows, vocabulary, width: (
            {"ids": rng.integers(vocabulary, size=rows)}
            | normal(rng, weight=(vocabulary, width), dy=(rows, width))
        ),
        layer("embedding", "ids weight", "dweight"),
        lambda ids, weight: functional().embedding(ids, weight),
        ("weight",),
    ),
    "layernorm": Case(
        ROWS_AND_WIDTH,
        draw_layernorm,
        layer("layernorm", "x weight bias", "dx dweight dbias", 1e-3),
        lambda x, weight, bias: functional().layer_norm(x, weight.shape, weight, bias, 1e-3),
        ("x", "weight", "bias"),
        # One value has no variance, and two have hardly any now and then: both sides' rounding is
        # then multiplied by 1/sqrt(eps).
        smallest_width=4,
    ),
    "rmsnorm": Case(
        ROWS_AND_WIDTH[:3],
        draw_rmsnorm,
        layer("rmsnorm", "x weight", "dx dweight", 1e-3),
        lambda x, weight: functional().rms_norm(x, weight.shape, weight, 1e-3),
        ("x", "weight"),
    ),
    **{
        name: Case(
            [(1, 1, 1, 1), (2, 3, 5, 4), (1, 2, 17, 8)],
            draw_rope,
            our_rope(scaled),
            their_rope(scaled),
            ("x",),
            largest=5,
        )
        for name, scaled in {"rope": False, "rope_llama3": True}.items()
    },
    "swiglu": Case(
        ROWS_AND_WIDTH[:3],
        draw_swiglu,
        layer("swiglu", "gate up", "dgate dup"),
        lambda gate, up: functional().silu(gate) * up,
        ("gate", "up"),
    ),
    **{
        name: Case(ROWS_AND_WIDTH, draw_activation, layer(name, "x", "dx"), formula, ("x",))
        for name, formula in {
            "gelu_tanh": lambda x: functional().gelu(x, approximate="tanh"),
            "gelu_erf": lambda x: functional().gelu(x),
            "relu": lambda x: functional().relu(x),
        }.items()
    },
    "attention": Case(
        [(1, 1, 1, 0, 1), (2, 3, 5, 0, 7), (1, 2, 1, 9, 8), (2, 1, 70, 3, 5), (1, 2, 130, 0, 16)],
        draw_attention,
        layer("attention", "q k v", "dq dk dv"),
        their_attention,
        ("q", "k", "v"),
        largest=5,
    ),
    "grouped_attention": Case(
        [(1, 1, 1, 1, 0, 1), (2, 1, 3, 5, 0, 7), (1, 2, 2, 1, 9, 8), (2, 3, 2, 70, 3, 5)],
        draw_grouped_attention,
        layer("attention", "q k v", "dq dk dv"),
        their_attention,
        ("q", "k", "v"),
        largest=4,
    ),
    "softmax": Case(
        [(1, 2), (7, 11), (20, 257)],
        lambda rng, rows, vocabulary: (
            {"x": 4 * rng.normal(size=(rows, vocabulary))} | normal(rng, dy=(rows, vocabulary))
        ),
        layer("softmax", "x", "dx"),
        lambda x: functional().softmax(x, -1),
        ("x",),
    ),
    "linear_cross_entropy": Case(
        OF_LOSS,
        draw_cross_entropy,
        our_cross_entropy,
        lambda x, weight, targets: functional().cross_entropy(x @ weight.T, targets),
        ("x", "weight"),
    ),
    "linear_log_probs": Case(
        OF_LOSS,
        draw_log_probs,
        layer("linear_log_probs", "x weight targets", "dx dweight"),
        their_log_probs,
        ("x", "weight"),
    ),
    "linear_log_probs of a policy": Case(
        OF_LOSS, draw_policy, our_policy, their_policy, ("x", "weight")
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
