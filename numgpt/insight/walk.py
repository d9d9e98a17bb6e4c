"""The way of a text through a model, as groups of steps in the order of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numgpt.insight.attention_steps import attention_steps, head_norm_step, rope_step
from numgpt.insight.steps import (
    Numbers,
    Step,
    activation_step,
    embedding_step,
    final_steps,
    mlp_input_step,
    mlp_output_step,
    norm_step,
    output_step,
    qkv_step,
    stream_step,
)
from numgpt.insight.trace import Trace


class Group(NamedTuple):
    title: str
    layer: int | None
    steps: list[Step]


def walk(of: Trace, progress: Callable[[str], object] = lambda what: None) -> list[Group]:
    """Embedding, the blocks that are kept, and what follows them.  progress is told the block at
    hand."""
    blocks = []
    for number, layer in enumerate(of.layers):
        progress(f"the steps of block {layer}, {number + 1} of {len(of.layers)}")
        blocks.append(Group(f"Block {layer}", layer, block_steps(of, layer)))
    before = Group("Before the blocks", None, [embedding_step(of)])
    return [before, *blocks, Group("After the blocks", None, final_steps(of))]


def block_steps(of: Trace, layer: int) -> list[Step]:
    """x + attention(norm(x)), and to that + feed-forward(norm(·))."""
    block = of.model.blocks[layer]
    a, norm_1, norm_2 = Numbers(of, block), block.norm_1, block.norm_2
    pre, mid, post = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
    return [
        norm_step(a, "norm_1", norm_1, pre, "ln1.", mid),
        qkv_step(a, block),
        *([head_norm_step(a, block.attention.norms)] if block.attention.norms else []),
        *([rope_step(a, block)] if block.attention.rotates else []),
        *attention_steps(a, block),
        output_step(a, block),
        stream_step(a, "stream_1", pre, "hook_attn_out", mid),
        norm_step(a, "norm_2", norm_2, mid, "ln2.", post),
        mlp_input_step(a, block),
        activation_step(a, block),
        mlp_output_step(a, block),
        stream_step(a, "stream_2", mid, "hook_mlp_out", post),
    ]
