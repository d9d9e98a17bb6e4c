"""torch.optim.AdamW on our weights, fed with drawn gradients."""

from __future__ import annotations

import numpy as np
from models.references import small_model

from numgpt import GPT

STEPS = 50
HYPERPARAMETERS = {"lr": 1e-2, "betas": (0.85, 0.97), "eps": 1e-7, "weight_decay": 0.3}


def model() -> GPT:
    return small_model("odd")


def gradients(model: GPT, step: int) -> np.ndarray:
    rng = np.random.default_rng([9, step])
    return rng.normal(scale=10.0 ** rng.integers(-3, 2), size=model.parameters.flat.size).astype(
        np.float32
    )


def record() -> dict[str, np.ndarray]:
    import torch

    ours = model()
    parameters = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in ours.parameters.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters.values() if p.ndim >= 2]},
            {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        **HYPERPARAMETERS,
    )
    norms = []
    for step in range(STEPS):
        flat = gradients(ours, step)
        for name, (offset, shape) in ours.parameters.layout.items():
            piece = flat[offset : offset + int(np.prod(shape))].reshape(shape)
            parameters[name].grad = torch.tensor(piece)
        clip = 1.0 if step % 2 else float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), clip).item())
        optimizer.step()
    return {n: p.detach().numpy() for n, p in parameters.items()} | {"norms": np.array(norms)}
