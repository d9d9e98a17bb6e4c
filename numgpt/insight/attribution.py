"""Direct logit attribution: the parts that a logit is the sum of (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits").

The residual stream at a position is a sum: embeddings, and what each head and each feed-forward
layer has added, x = Σ_c x_c. At the scale that the whole stream has there, rstd = 1/√(var(x) + eps)
(RMSNorm: mean(x²) in place of var), the final norm is linear, and so is the unembedding:

    logit_t = Σ_c (γ · centred(x_c) · rstd) · W_U[t] + β · W_U[t]        LayerNorm
    logit_t = Σ_c (γ · x_c · rstd) · W_U[t]                              RMSNorm

A head's part is z_h W_O[h], its rows of the output projection; biases stand by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from numgpt.insight.targets import Target, target
from numgpt.models.blocks import Block
from numgpt.models.inputs import Ids
from numgpt.models.language_model import LanguageModel
from numgpt.models.modules import LayerNorm, Linear

TOLERANCE = 1e-4  # of the sum, relative to its largest part: float32 products
ROUNDED = 2**-6  # … where products round what they multiply to bfloat16


def direct_logit_attribution(
    model: LanguageModel, ids: Ids, token: int, against: int | None = None, position: int = -1
) -> dict[str, np.ndarray]:
    """The parts of the logit of a token after `position`, or of its difference to the logit of
    `against`: arrays by name, the sum of all of which is the logit.

    ids (T,) -> {"embed": (), "pos_embed": () (GPT-2), "heads": (L, H), "attention_biases": (L,),
    "mlps": (L,), "mlp_biases": (L,), "final_bias": ()}. Raises ArithmeticError if they don't add
    up.
    """
    of = target(model, ids, token, against, position)
    return attribution_of(model, of, *model.run_with_cache(of.ids, attribution_names(model)))


def attribution_names(model: LanguageModel) -> list[str]:
    """The hooks that the parts are computed from."""
    names = list(model.embedding_hooks)
    for block in model.blocks:
        names += [f"{block.hook_prefix}attn.hook_z", f"{block.hook_prefix}hook_mlp_out"]
    return [*names, f"{model.blocks[-1].hook_prefix}hook_resid_post"]


def attribution_of(
    model: LanguageModel, of: Target, logits: np.ndarray, cache: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`direct_logit_attribution` of activations that are there: those of `attribution_names`."""
    at, last = of.position, f"{model.blocks[-1].hook_prefix}hook_resid_post"
    norm = model.final_norm
    _, norm_cache = norm.forward(cache[last][0, at : at + 1])
    rstd = norm_cache.computed.rstd[0].astype(np.float64)
    direction = of.direction(model).astype(np.float64)

    def parts(x: np.ndarray) -> np.ndarray:
        """(…, C) of the stream -> (…) of the logit."""
        x = x.astype(np.float64)
        centred = x - x.mean(axis=-1, keepdims=True) if isinstance(norm, LayerNorm) else x
        return (norm.weight * (centred * rstd)) @ direction

    found = {
        name.removeprefix("hook_"): parts(cache[name][0, at]) for name in model.embedding_hooks
    }
    heads, attention_biases, mlps, mlp_biases = [], [], [], []
    for block in model.blocks:
        z = cache[f"{block.hook_prefix}attn.hook_z"][0, at]  # (H, D)
        of_heads, bias = through_heads(block, z[None])
        heads.append(parts(of_heads[0]))
        attention_biases.append(parts(bias))
        mlp_bias = bias_of(block.mlp.out, z.dtype)
        mlps.append(parts(cache[f"{block.hook_prefix}hook_mlp_out"][0, at] - mlp_bias))
        mlp_biases.append(parts(mlp_bias))
    found |= {"heads": np.array(heads), "attention_biases": np.array(attention_biases)}
    found |= {"mlps": np.array(mlps), "mlp_biases": np.array(mlp_biases)}
    found["final_bias"] = np.zeros(()) if norm.bias is None else norm.bias @ direction
    _check_sum(found, float(of.value(logits)[0]), model.in_fewer_bits)
    return {name: np.asarray(value) for name, value in found.items()}


def head_outputs(model: LanguageModel, ids: Ids, layer: int) -> np.ndarray:
    """What each head of a layer adds to the stream, without the bias.  ids (T,) or (B, T) -> (B, T,
    H, C)."""
    ids = model.check_ids(ids)
    if not 0 <= layer < len(model.blocks):
        raise ValueError(f"layer={layer}: the model has layers 0 to {len(model.blocks) - 1}")
    block = model.blocks[layer]
    name = f"{block.hook_prefix}attn.hook_z"
    z = model.run_with_cache(ids, name)[1][name]  # (B, T, H, D)
    outputs, _ = through_heads(block, z.reshape(-1, *z.shape[2:]))
    return outputs.reshape(*z.shape[:3], -1)


def through_heads(block: Block, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z (N, H, D) -> each head's part of the projection's result (N, H, C), and the bias (C,).

    Each head goes through the projection with the others at 0, so that whatever it is (with an
    adapter, joined, transposed) is in the parts."""
    count, heads, size = z.shape
    alone = np.zeros((count, heads, heads, size), z.dtype)
    alone[:, np.arange(heads), np.arange(heads)] = z
    y, _ = block.attention.out.forward(alone.reshape(count * heads, heads * size))
    bias = bias_of(block.attention.out, z.dtype)
    return y.reshape(count, heads, -1) - bias, bias


def bias_of(linear: Linear, dtype: np.dtype) -> np.ndarray:
    """What a projection makes of 0.  (O,)"""
    return np.zeros(linear.width, dtype) if linear.bias is None else linear.bias


def _check_sum(parts: dict[str, np.ndarray], logit: float, in_fewer_bits: bool) -> None:
    total = sum(float(np.sum(part)) for part in parts.values())
    size = max(1.0, max(float(np.max(np.abs(part), initial=0)) for part in parts.values()))
    tolerance = ROUNDED if in_fewer_bits else TOLERANCE
    if not abs(total - logit) <= tolerance * size:
        raise ArithmeticError(
            f"the parts add up to {total:.6f}, the logit is {logit:.6f}: the model's weights hold"
            " numbers too large for these sums"
        )
