"""Attention's steps: rotations, scores, softmax, sum of values. Matrices are (H, query, key)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from numgpt.insight.formulas import FORMULAS, Formula
from numgpt.insight.steps import Numbers, Side, Step, Strip, elementwise, together
from numgpt.insight.tables import HEAD_FEATURES, Input, Product, keys, largest, product
from numgpt.layers import rope_rotation, softmax_backward
from numgpt.layers.softmax import exponentials
from numgpt.models.blocks import Block
from numgpt.models.llama import LlamaConfig
from numgpt.models.modules import RMSNorm

KEYS = 2  # of a query, whose scores are explained


def head_norm_step(a: Numbers, norms: Mapping[str, RMSNorm]) -> Step:
    """The features of each query and each key are normalised."""
    forward, backward = [], []
    for (name, norm), heads in zip(norms.items(), "HK", strict=True):
        x, dx = a.x(f"attn.hook_{name}"), a.dx(f"attn.hook_{name}")
        y, dy = a.x(f"attn.hook_{name}_normed"), a.dx(f"attn.hook_{name}_normed")
        of_norm = norm.forward(x)[1].computed
        rstd, x_hat = of_norm.rstd.reshape(*x.shape[:2], 1), of_norm.x_hat.reshape(x.shape)
        g = dy * norm.weight
        of_product = (g * x_hat).mean(axis=-1, keepdims=True)
        made = {name: x, "rstd": rstd, "x̂": x_hat, "weight": norm.weight, f"{name}°": y}
        back = {f"d{name}°": dy, "g": g, "x̂": x_hat, "mean(g · x̂)": of_product, "rstd": rstd}
        forward.append(elementwise(made, heads))
        backward.append(elementwise(back | {f"d{name}": dx}, heads))
    formula, hook = FORMULAS["head norms"], f"{a.prefix}attn.hook_q"
    formula = formula.and_symbols(f"ε = {norms['q'].eps:g}")
    return Step("head_norms", formula, hook, together(forward), together(backward))


def rope_step(a: Numbers, block: Block) -> Step:
    """Queries and keys are turned: each feature with the other of its pair."""
    config = a.trace.model.config
    assert isinstance(config, LlamaConfig)
    half = config.head_size // 2
    partner = (np.arange(2 * half) + half) % (2 * half)
    places = np.arange(len(a.trace.ids))[None]
    rotation = rope_rotation(places, config.frequencies(), a.x("attn.hook_q").dtype)
    whole = places.size, 2, half
    cos, sin = (np.broadcast_to(part[0, 0], whole).reshape(-1, 1, 2 * half) for part in rotation)
    forward_of, backward_of = [], []
    for name, heads in (("q", "H"), ("k", "K")):
        read = f"attn.hook_{name}_normed" if block.attention.norms else f"attn.hook_{name}"
        x, dx = a.x(read), a.dx(read)
        y, dy = a.x(f"attn.hook_rot_{name}"), a.dx(f"attn.hook_rot_{name}")
        before = f"{name}°" if block.attention.norms else name
        turn = {before: x, "cos": cos, "its pair": x[..., partner], "∓sin": sin, f"{name}′": y}
        back = {f"d{name}′": dy, "cos": cos, "its pair": dy[..., partner], "±sin": -sin}
        forward_of.append(elementwise(turn, heads))
        backward_of.append(elementwise(back | {f"d{before}": dx}, heads))
    forward, backward = together(forward_of), together(backward_of)
    frequencies = f"ω_i = {config.rope_theta:g} to the power −2i/D"
    if config.rope_scaling:
        frequencies += ", stretched for longer contexts"
    formula = FORMULAS["rope"].and_symbols(
        f"in the tables q′ = q · cos + its pair · ∓sin; t is the token's place; q_1 and q_2 are"
        f" the features i and i + D/2; {frequencies}"
    )
    if not block.attention.norms:
        return Step("rope", formula, f"{a.prefix}attn.hook_q", forward, backward)
    formula = formula._replace(
        forward=re.sub(r"\bq_", "q°_", formula.forward),
        backward=re.sub(r"\bdq_", "dq°_", formula.backward).replace("dk", "dk°"),
        forward_shapes="q°, q′: BTHD; k°, k′: BTKD",
        backward_shapes="dq°, dq′: BTHD; dk°, dk′: BTKD",
    ).and_symbols("q° and k° are what the norms have made")
    return Step("rope", formula, f"{a.prefix}attn.hook_q_normed", forward, backward)


def attention_steps(a: Numbers, block: Block) -> list[Step]:
    """Scores, softmax and the sum of values."""
    turned = block.attention.rotates
    q_name, k_name = (f"attn.hook_{'rot_' if turned else ''}{name}" for name in "qk")
    of_q, of_k = ("q′", "k′") if turned else ("q", "k")
    q, dq, dk, dv = a.x(q_name), a.dx(q_name), a.dx(k_name), a.dx("attn.hook_v")
    z, dz = a.x("attn.hook_z"), a.dx("attn.hook_z")
    group = q.shape[1] // dk.shape[1]
    k, v = (np.repeat(a.x(name), group, axis=1) for name in (k_name, "attn.hook_v"))  # (T, H, D)
    p, scale = a.x("attn.hook_pattern"), block.attention.scale
    seen = np.tri(len(q), dtype=bool)
    hidden_scores = np.where(seen, scale * np.einsum("ihd,jhd->hij", q, k), -np.inf)
    _, highest, total = exponentials(hidden_scores.copy())
    s, dp = np.where(seen, hidden_scores, 0), np.where(seen, a.dx("attn.hook_pattern"), 0)
    ds = softmax_backward(dp, p)
    return [
        Step(
            "scores",
            _formula("scores", block, group).and_symbols(f"scale = {_scale(scale)}"),
            a.prefix + q_name,
            Side([], [keys({"s": s}, {}), dot("s", q, k, s, p, (of_q, of_k), scale)]),
            Side(
                [Strip(f"d{of_q}", "H", dq), Strip(f"d{of_k}", "K", dk)],
                [
                    weighted_sum(f"d{of_q}", "key", ds, k, dq, ("ds", of_k), scale),
                    weighted_sum(f"d{of_k}", "query", ds, q, dk, ("ds", of_q), scale),
                ],
            ),
        ),
        Step(
            "softmax",
            _formula("softmax", block, group),
            "",
            Side([], [keys({"s": s, "p": p}, {"M": highest[..., 0], "Z": total[..., 0]})]),
            Side([], [keys({"p": p, "dp": dp, "ds": ds}, {"Σ dp p": np.vecdot(dp, p)})]),
        ),
        Step(
            "values",
            _formula("values", block, group),
            f"{a.prefix}attn.hook_pattern",
            Side([Strip("z", "H", z)], [weighted_sum("z", "key", p, v, z, ("p", "v"))]),
            Side(
                [Strip("dz", "H", dz), Strip("dv", "K", dv)],
                [
                    dot("dp", dz, v, dp, dp, ("dz", "v")),
                    weighted_sum("dv", "query", p, dz, dv, ("p", "dz")),
                ],
            ),
        ),
    ]


def _scale(scale: float) -> str:
    """… and what it is made of, where that is the usual."""
    size = round(1 / scale**2)
    usual = abs(scale - 1 / size**0.5) < 1e-9
    return f"1/√{size} = {scale:.4g}" if usual else f"{scale:.6g}"


def _formula(name: str, block: Block, group: int) -> Formula:
    """As it is of turned queries and keys, and of heads that share a KV head."""
    formula = FORMULAS[name]
    if name == "scores" and block.attention.rotates:
        formula = formula._replace(
            forward="s_ij = scale · q′_i · k′_j for j ≤ i, else −∞",
            forward_shapes="q′: BTHD; k′: BTKD; s: BHTS",
            backward_shapes="ds: BHTS; dq′: BTHD; dk′: BTKD",
            backward="dq′_i = scale · Σ_j ds_ij k′_j,   dk′_j = scale · Σ_i ds_ij q′_i",
        )
    if group > 1 and name != "softmax":
        formula = formula._replace(backward=formula.backward.replace("Σ_i", "Σ_h Σ_i"))
        formula = formula.and_symbols(f"{group} heads share a KV head: head h has ⌊h/{group}⌋")
        formula = formula.and_symbols("Σ_h goes over the heads that share it", backward=True)
    return formula


def dot(
    title: str,
    x: np.ndarray,
    w: np.ndarray,
    matrix: np.ndarray,
    by: np.ndarray,
    factors: tuple[str, str],
    factor: float = 1.0,
) -> Product:
    """matrix[h, i, j] = factor · x[i, h] · w[j, h], for the keys with the largest of `by`."""
    time, heads, _ = x.shape
    seen = np.tri(time, dtype=bool)
    chosen = largest(np.where(seen, by, 0).swapaxes(0, 1), KEYS)  # (T, H, n)
    head, query = np.arange(heads)[None, :, None], np.arange(time)[:, None, None]
    rows, result = w[chosen, head], matrix[head, query, chosen]
    rows = np.where(seen[query, chosen][..., None], rows, 0)  # no later key has a part in it
    inputs = [Input(factors[0], x, "head")]
    return product(title, inputs, rows, chosen, result, factors, "key", "H", factor=factor)


def weighted_sum(
    title: str,
    over: str,
    matrix: np.ndarray,
    w: np.ndarray,
    result: np.ndarray,
    factors: tuple[str, str],
    factor: float = 1.0,
) -> Product:
    """A sum over the keys j of a query i ("key"), or over the queries of a key ("query") and the
    heads h that share its KV head κ; for the largest features of the result:

    result[i, h] = factor · Σ_j matrix[h, i, j] w[j, h]
    result[j, κ] = factor · Σ_h Σ_i matrix[h, i, j] w[i, h]
    """
    time, heads, size = result.shape
    w = w.transpose(1, 2, 0).reshape(heads, -1, size, time)  # (κ, h, D, i), or (h, 1, D, j)
    w = w.swapaxes(1, 2).reshape(heads, size, -1)
    chosen = largest(result, HEAD_FEATURES)  # (T, H, n)
    rows, picked = w[np.arange(heads)[:, None], chosen], np.take_along_axis(result, chosen, -1)
    by, letter = ("head", "H") if over == "key" else ("query", "K")
    inputs = [Input(over, matrix.swapaxes(0, 1), by)]
    return product(title, inputs, rows, chosen, picked, factors, heads=letter, factor=factor)
