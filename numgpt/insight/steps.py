"""The steps of a pass, each with the numbers that fill its formula, forwards and backwards.

What a step shows are the activations and gradients of a trace; the terms of sums and the factors of
elementwise formulas are computed from these with the model's own layers and matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from numgpt.insight.attribution import bias_of, through_heads
from numgpt.insight.formulas import FORMULAS, Formula
from numgpt.insight.tables import FEATURES, Input, Table, largest, matrix_product, product, values
from numgpt.insight.trace import Trace
from numgpt.layers.sigmoid import sigmoid
from numgpt.layers.softmax import exponentials
from numgpt.models.blocks import Block, GatedMLP
from numgpt.models.language_model import LanguageModel
from numgpt.models.modules import LayerNorm, Linear, Norm

HEADS = {"q": "H", "k": "K", "v": "K"}  # whose they are: attention heads', or KV heads'
TOKENS = 6  # of the vocabulary, whose logits are explained


class Strip(NamedTuple):
    """A whole vector of each token, or of each token and head."""

    label: str
    heads: str  # "H", "K" or ""
    array: np.ndarray  # (T, [H,] n)


class Side(NamedTuple):
    """The numbers of a step in one direction."""

    strips: Sequence[Strip]
    tables: Sequence[Table]


class Step(NamedTuple):
    name: str
    formula: Formula
    hook: str  # where the gradient is, which a finite difference can check
    forward: Side
    backward: Side


class Numbers:
    """The activations and gradients of a trace, by their names in one block."""

    def __init__(self, of: Trace, block: Block | None = None):
        self.trace = of
        self.prefix = "" if block is None else block.hook_prefix

    def x(self, name: str) -> np.ndarray:
        """An activation: (T, …), patterns (H, T, S)."""
        return _by_token(name, self.trace.activations[self.prefix + name])

    def dx(self, name: str) -> np.ndarray:
        """The loss's gradient by it."""
        return _by_token(name, self.trace.gradients[self.prefix + name])


def _by_token(name: str, array: np.ndarray) -> np.ndarray:
    """What a norm of queries or keys has made is (H, T, D): -> (T, H, D)."""
    return array.swapaxes(0, 1) if name.endswith("_normed") else array


def embedding_step(of: Trace) -> Step:
    """From ids to the stream."""
    a, model = Numbers(of), of.model
    formula, parts = FORMULAS["embedding"], {"wte[id]": a.x("hook_embed")}
    if "hook_pos_embed" in model.embedding_hooks:
        parts["wpe[t]"] = a.x("hook_pos_embed")
        formula = formula._replace(
            forward="x_t = wte[id_t] + wpe[t]",
            forward_shapes=f"{formula.forward_shapes}; wpe: PC",
            backward=f"{formula.backward},   dwpe[t] = dx_t",
            backward_shapes=f"{formula.backward_shapes}; dwpe: PC",
            words="A token's id chooses a row of one table, its place in the text a row of another:"
            " their sum is the vector with which the stream begins.",
        ).and_symbols("wpe that of the places'")
    stream, dx = a.x(f"{model.blocks[0].hook_prefix}hook_resid_pre"), a.dx("hook_embed")
    same = (of.ids[:, None] == of.ids).astype(dx.dtype)
    back = {"dx_t": dx, "Σ dx of this token": same @ dx}
    if is_tied(model):
        y, _ = model.final_norm.forward(a.x(f"{model.blocks[-1].hook_prefix}hook_resid_post"))
        back["dzᵀ y of this token"] = of.dlogits[:, of.ids].T @ y
        formula = formula._replace(
            backward=formula.backward.replace("dwte[v] = ", "dwte[v] = (dzᵀ y)[v] + ")
        ).and_symbols("dzᵀ y comes from the logits, which wte makes too", backward=True)
        back["dwte[id]"] = back["Σ dx of this token"] + back["dzᵀ y of this token"]
    backward = Side([Strip("dx", "", dx)], [values(back)])
    return Step("embedding", formula, "hook_embed", elementwise(parts | {"x": stream}), backward)


def is_tied(model: LanguageModel) -> bool:
    """Whether the unembedding is the embedding."""
    return model.unembedding.name in model.embeddings


def norm_step(a: Numbers, name: str, norm: Norm, stream: str, hook: str, above: str | None) -> Step:
    """A norm on the stream; the stream goes on beside its branch, and comes back from `above`."""
    x, x_hat = a.x(stream), a.x(f"{hook}hook_normalized")
    g, dx = a.dx(f"{hook}hook_normalized"), a.dx(stream)
    y, norm_cache = norm.forward(x)
    cache = norm_cache.computed
    centres = isinstance(norm, LayerNorm)
    forward = {"x": x} | ({"mean(x)": _mean(x)} if centres else {})
    forward |= {"rstd": cache.rstd, "x̂": x_hat, "weight": norm.weight}
    mean, of_product = _mean(g) if centres else np.zeros_like(cache.rstd), _mean(g * x_hat)
    backward = {"g": g, "x̂": x_hat, "mean(g · x̂)": of_product, "rstd": cache.rstd}
    if norm.bias is not None:
        forward |= {"bias": norm.bias}
        backward |= {"mean(g)": mean}
    backward |= {"rstd · (…)": cache.rstd * (g - mean - x_hat * of_product)}
    formula = FORMULAS["layernorm" if centres else "rmsnorm"].and_symbols(f"ε = {norm.eps:g}")
    if above is not None:
        backward |= {"dx_past": a.dx(above)}
        formula = formula._replace(
            backward=formula.backward.replace("mean(g · x̂))", "mean(g · x̂)) + dx_past")
        ).and_symbols(
            "dx_past is the gradient that comes past this branch, along the stream", backward=True
        )
    sides = elementwise(forward | {"y": y}), elementwise(backward | {"dx": dx})
    return Step(name, formula, a.prefix + stream, *sides)


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1, keepdims=True)


def elementwise(columns: Mapping[str, np.ndarray], heads: str = "") -> Side:
    """The last column, and what its largest features are made of."""
    label, result = list(columns.items())[-1]
    return Side([Strip(label, heads, result)], [values(columns, heads=heads)])


def together(sides: Sequence[Side]) -> Side:
    strips = [strip for side in sides for strip in side.strips]
    return Side(strips, [table for side in sides for table in side.tables])


def joint_products(
    a: Numbers, linear: Linear, stream: str, norm: Norm, norm_hook: str, parts: Mapping[str, str]
) -> tuple[list[Table], Table]:
    """A projection of a norm's y whose columns, side by side, make several results, name -> hook:
    a table of each, and that of g = (dy Wᵀ) · weight, which reaches the norm's x̂ from all."""
    y, _ = norm.forward(a.x(stream))
    matrix, bias = linear.matrix(), bias_of(linear, y.dtype)
    tables: list[Table] = []
    start = 0
    for name, hook in parts.items():
        x, heads = a.x(hook), HEADS.get(name, "")
        columns = slice(start, start + x[0].size)
        start = columns.stop
        w, b = matrix[:, columns], bias[columns]
        tables.append(matrix_product(name, [Input("y", y)], w, x, b, ("y", "W"), heads=heads))
    dy = [Input(f"d{name}", a.dx(hook)) for name, hook in parts.items()]
    g, weighted = a.dx(f"{norm_hook}hook_normalized"), (matrix * norm.weight[:, None]).T
    return tables, matrix_product("g", dy, weighted, g, None, ("d", "W · weight"))


def qkv_step(a: Numbers, block: Block) -> Step:
    """Three products of the same y."""
    hooks, linear = {name: f"attn.hook_{name}" for name in HEADS}, block.attention.qkv
    tables, g = joint_products(a, linear, "hook_resid_pre", block.norm_1, "ln1.", hooks)
    strips = [Strip(name, HEADS[name], a.x(hook)) for name, hook in hooks.items()]
    back = [Strip(f"d{name}", HEADS[name], a.dx(hook)) for name, hook in hooks.items()]
    hook, formula = f"{a.prefix}ln1.hook_normalized", with_biases(FORMULAS["qkv"], linear)
    return Step("qkv", formula, hook, Side(strips, tables), Side(back, [g]))


def with_biases(formula: Formula, linear: Linear) -> Formula:
    """As the projection has them or not."""
    return formula.without_biases() if linear.bias is None else formula


def output_step(a: Numbers, block: Block) -> Step:
    """What the heads have found, into the width of the stream."""
    z, out = a.x("attn.hook_z"), a.x("hook_attn_out")
    dz, dout = a.dx("attn.hook_z"), a.dx("hook_attn_out")
    linear = block.attention.out
    matrix, bias = linear.matrix(), bias_of(linear, z.dtype)
    of_heads, _ = through_heads(block, z)  # (T, H, C)
    columns = {f"head {head}": of_heads[:, head] for head in range(z.shape[1])}
    if bias.any():
        columns |= {"b": bias}
    whole = matrix_product("out", [Input("z", z)], matrix, out, bias, ("z", "W"))
    dout_in = [Input("dout", dout)]
    back = matrix_product("dz", dout_in, matrix.T, dz, None, ("dout", "W"), heads="H")
    forward = Side([Strip("out", "", out)], [whole, values(columns | {"out": out})])
    backward = Side([Strip("dout", "", dout), Strip("dz", "H", dz)], [back])
    formula, hook = with_biases(FORMULAS["output"], linear), a.prefix + "attn.hook_z"
    return Step("output", formula, hook, forward, backward)


def stream_step(a: Numbers, name: str, before: str, branch: str, after: str) -> Step:
    """What a branch adds to the stream."""
    forward = {"x": a.x(before), "out": a.x(branch), "x + out": a.x(after)}
    backward = {"dout": a.dx(branch), "dx": a.dx(after)}
    hook, formula = a.prefix + after, FORMULAS["stream"]
    return Step(name, formula, hook, elementwise(forward), elementwise(backward))


def mlp_input_step(a: Numbers, block: Block) -> Step:
    """The product that the activation reads; of a gated layer two."""
    name, hooks, linear = "feed-forward in", {"pre": "mlp.hook_pre"}, block.mlp.fc
    if isinstance(block.mlp, GatedMLP):
        name, hooks = f"gated {name}", {"gate": "mlp.hook_pre", "up": "mlp.hook_pre_linear"}
    tables, g = joint_products(a, linear, "hook_resid_mid", block.norm_2, "ln2.", hooks)
    hook, formula = f"{a.prefix}ln2.hook_normalized", with_biases(FORMULAS[name], linear)
    return Step("mlp_input", formula, hook, Side([], tables), Side([], [g]))


def activation_step(a: Numbers, block: Block) -> Step:
    """GELU, ReLU or SwiGLU."""
    pre, post = a.x("mlp.hook_pre"), a.x("mlp.hook_post")
    dpre, dpost = a.dx("mlp.hook_pre"), a.dx("mlp.hook_post")
    if isinstance(block.mlp, GatedMLP):
        up, dup = a.x("mlp.hook_pre_linear"), a.dx("mlp.hook_pre_linear")
        sigma = sigmoid(pre)
        formula = FORMULAS["swiglu"]
        forward = {"gate": pre, "σ(gate)": sigma, "up": up, "post": post}
        of_pre = {"dpost": dpost, "up": up, "σ(gate)": sigma, "gate": pre, "dgate": dpre}
        of_up = {"dpost": dpost, "gate": pre, "σ(gate)": sigma, "dup": dup}
        backward = [elementwise(of_pre), elementwise(of_up)]
    else:
        mlp = block.mlp
        slope = mlp.act_backward(np.ones_like(pre), mlp.act_forward(pre)[1])
        formula = FORMULAS[mlp.act_forward.__name__.removesuffix("_forward")]
        forward = {"pre": pre, "post": post}
        of_pre = {"dpost": dpost, "pre": pre, "slope": slope, "dpre": dpre}
        backward = [elementwise(of_pre)]
    hook = a.prefix + "mlp.hook_pre"
    return Step("activation", formula, hook, elementwise(forward), together(backward))


def mlp_output_step(a: Numbers, block: Block) -> Step:
    """What the feed-forward layer adds to the stream."""
    post, out = a.x("mlp.hook_post"), a.x("hook_mlp_out")
    dpost, dout = a.dx("mlp.hook_post"), a.dx("hook_mlp_out")
    matrix, bias = block.mlp.out.matrix(), bias_of(block.mlp.out, post.dtype)
    whole = matrix_product("out", [Input("post", post)], matrix, out, bias, ("post", "W"))
    back = matrix_product("dpost", [Input("dout", dout)], matrix.T, dpost, None, ("dout", "W"))
    sides = Side([Strip("out", "", out)], [whole]), Side([Strip("dout", "", dout)], [back])
    formula = with_biases(FORMULAS["feed-forward out"], block.mlp.out)
    return Step("mlp_output", formula, f"{a.prefix}mlp.hook_post", *sides)


def final_steps(of: Trace) -> list[Step]:
    """After the last block: norm, logits, probabilities and the loss."""
    a, model = Numbers(of), of.model
    norm, last = model.final_norm, f"{model.blocks[-1].hook_prefix}hook_resid_post"
    y, _ = norm.forward(a.x(last))
    z, unembedding = of.logits, model.unembedding.weight
    g, chosen = a.dx("ln_final.hook_normalized"), tokens_shown(of)
    y_in = [Input("y", y)]
    forward = matrix_product("z", y_in, unembedding.T, z, None, ("y", "W_U"), "token", chosen)
    e, highest, total = exponentials(z.copy())
    p, onehot = e / total, np.zeros_like(z)
    onehot[np.arange(len(z)), of.targets] = 1
    log_p = z - highest - np.log(total)
    of_loss = {"z": z, "M": highest, "Z": total, "−log p": -log_p, "p": p}
    of_dz = {"p": p, "[v = target]": onehot, "dz": of.dlogits}
    logits_formula = FORMULAS["logits"]
    if is_tied(model):
        logits_formula = logits_formula.and_symbols(
            "W_U is wte, the embedding's table"
        ).and_symbols(
            "dwte has two parts, of which dW_U is one: the other is the embedding's", backward=True
        )
    backward = through_unembedding(of, g, unembedding, norm.weight)
    loss, dz = values(of_loss, "token", chosen), values(of_dz, "token", chosen)
    logits_hook = "ln_final.hook_normalized"
    return [
        norm_step(a, "final_norm", norm, last, "ln_final.", None),
        Step("logits", logits_formula, logits_hook, Side([], [forward]), Side([], [backward])),
        Step("loss", FORMULAS["loss"], "", Side([], [loss]), Side([], [dz])),
    ]


def through_unembedding(
    of: Trace, g: np.ndarray, unembedding: np.ndarray, weight: np.ndarray
) -> Table:
    """g = (dz W_U) · weight, a token at a time: the sums go over the whole vocabulary."""
    chosen, unembedding = largest(g, FEATURES), np.asarray(unembedding)
    parts = []
    for t, features in enumerate(chosen):
        w = (unembedding[:, features] * weight[features]).T  # (n, V)
        inputs, result = [Input("token", of.dlogits[t : t + 1])], g[t : t + 1, features]
        parts.append(product("g", inputs, w, features[None], result, ("dz", "W_U · weight")))
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("chosen", "terms_index", "w", "terms", "sums")
    }
    x = np.take_along_axis(of.dlogits[:, None], arrays["terms_index"], axis=-1)  # (T, n, m)
    return parts[0]._replace(inputs=[Input("token", None)], x=x, **arrays)


def tokens_shown(of: Trace) -> np.ndarray:
    """The likeliest tokens after each, and last the target where it is none of them.  (T, n)"""
    index = largest(of.logits - of.logits.min(axis=1, keepdims=True), TOKENS)
    missing = ~(index == of.targets[:, None]).any(axis=1)
    index[missing, -1] = of.targets[missing]
    return index
