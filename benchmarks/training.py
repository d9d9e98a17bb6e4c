"""Training steps: forward, backward, clipping, AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
CHAR = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65}

# Other ways to run a step, and how the table calls them: in PyTorch, but for the one in JAX.
OTHERS = {
    "eager": "PyTorch",
    "transformers": "transformers",
    "jax": "JAX, jit",
    "fused": "PyTorch, fused AdamW",
    "fused compiled": "PyTorch, fused AdamW, compiled",
    "fused bf16": "PyTorch, fused AdamW, bfloat16",
    "fused compiled bf16": "PyTorch, fused AdamW, compiled, bfloat16",
    "numgpt": "numgpt in float32",
}


def ids_and_targets(config: dict[str, int], batch: int, time: int) -> np.ndarray:
    return np.random.default_rng(0).integers(config["vocab_size"], size=(2, batch, time))


def numgpt_step(
    config: dict[str, int], batch: int, time: int, dtype: str = "float32"
) -> Callable[[], None]:
    import numgpt

    model = numgpt.GPT(numgpt.GPTConfig(**config))
    plain = dtype == "float32"  # earlier versions know no other
    optimizer = numgpt.AdamW(model, lr=1e-4)
    ids, targets = ids_and_targets(config, batch, time)

    def step() -> None:
        with contextlib.nullcontext() if plain else model.autocast(dtype):
            model.loss_and_grads(ids, targets)
        optimizer.step(grad_clip=1.0)

    return step


def torch_step(
    config: dict[str, int], batch: int, time: int, how: str = "eager"
) -> Callable[[], None]:
    import torch

    from benchmarks.torch_gpt import TorchGPT, adamw

    ids, targets = torch.tensor(ids_and_targets(config, batch, time))
    if how == "transformers":
        model, loss = transformers_loss(config)
    else:
        model = TorchGPT(**config)
        loss = torch.compile(model.loss) if "compiled" in how else model.loss
    optimizer = adamw(model, lr=1e-4, fused="fused" in how)
    precision = torch.autocast("cpu", torch.bfloat16) if "bf16" in how else contextlib.nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision:
            value = loss(ids, targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def jax_step(config: dict[str, int], batch: int, time: int) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    from benchmarks.jax_gpt import initial, step

    sizes = dict(config)
    n_head = sizes.pop("n_head")
    ids, targets = jnp.array(ids_and_targets(config, batch, time), jnp.int32)
    weights = initial(**sizes)
    m, v = ({name: jnp.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    steps = 0

    def run() -> None:
        nonlocal weights, m, v, steps
        steps += 1
        weights, m, v, loss = step(weights, m, v, steps, ids, targets, n_head)
        jax.block_until_ready((weights, m, v, loss))

    return run


def transformers_loss(config: dict[str, int]) -> tuple[Any, Callable[..., Any]]:
    import torch
    import transformers

    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **dropout)).train()

    def loss(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return model, loss
