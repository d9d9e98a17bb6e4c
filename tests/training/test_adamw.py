"""AdamW against torch.optim.AdamW, recorded and live; clipping; the schedule."""

import math
from itertools import pairwise

import numpy as np
import pytest
from models.references import small_model
from support import GOLDENS, assert_close

from numgpt import GPT, AdamW, GPTConfig
from numgpt.models.parameters import Gradients
from numgpt.training import learning_rate
from numgpt.training.adamw import gradient_norm

STEPS = 50
HYPERPARAMETERS = {"lr": 1e-2, "betas": (0.85, 0.97), "eps": 1e-7, "weight_decay": 0.3}


def drawn(model: GPT, step: int) -> np.ndarray:
    rng = np.random.default_rng([9, step])
    scale = 10.0 ** rng.integers(-3, 2)
    return rng.normal(scale=scale, size=model.parameters.flat.size).astype(np.float32)


def record() -> dict[str, np.ndarray]:
    """torch.optim.AdamW on our weights, fed with drawn gradients: for goldens/record.py."""
    import torch

    ours = small_model("odd")
    parameters = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in ours.parameters.items()}
    matrices = {"params": [p for p in parameters.values() if p.ndim >= 2]}
    vectors = {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], **HYPERPARAMETERS)
    norms = []
    for step in range(STEPS):
        flat = drawn(ours, step)
        for name, (offset, shape) in ours.parameters.layout.items():
            piece = flat[offset : offset + int(np.prod(shape))].reshape(shape)
            parameters[name].grad = torch.tensor(piece)
        clip = 1.0 if step % 2 else float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), clip).item())
        optimizer.step()
    return {n: p.detach().numpy() for n, p in parameters.items()} | {"norms": np.array(norms)}


def run_ours() -> tuple[GPT, list[float]]:
    model = small_model("odd")
    optimizer = AdamW(model, **HYPERPARAMETERS)
    norms = []
    for step in range(STEPS):
        model.gradients = Gradients(model.trained, model.parameters.dtype)
        model.gradients.flat[:] = drawn(model, step)
        norms.append(optimizer.step(grad_clip=1.0 if step % 2 else None))
    return model, norms


def compare(expected: dict[str, np.ndarray]) -> None:
    model, norms = run_ours()
    np.testing.assert_allclose(norms, expected["norms"], rtol=1e-5)
    for name, array in model.parameters.items():
        assert_close(array, expected[name], name)


def test_equals_recorded_pytorch_over_50_steps():
    with np.load(GOLDENS / "adamw.npz") as goldens:
        compare(dict(goldens))


@pytest.mark.live("torch", "transformers")
def test_equals_pytorch_over_50_steps():
    compare(record())


def test_decays_matrices_only():
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_positions=4, vocab_size=5), seed=0)
    before = {name: array.copy() for name, array in model.parameters.items()}
    model.gradients = Gradients(model.trained, model.parameters.dtype)
    AdamW(model, lr=0.1, weight_decay=0.5).step()
    for name, array in model.parameters.items():
        expected = before[name] * (0.95 if array.ndim == 2 else 1)
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=name)


def test_a_norm_that_is_not_finite_changes_nothing():
    model = small_model("odd")
    before = model.parameters.flat.copy()
    model.gradients = Gradients(model.trained, model.parameters.dtype)
    model.gradients.flat[3] = np.nan
    optimizer = AdamW(model)
    assert math.isnan(optimizer.step(grad_clip=1.0))
    np.testing.assert_array_equal(model.parameters.flat, before)
    assert optimizer.steps == 0
    assert not optimizer.m.any()


def test_needs_gradients():
    with pytest.raises(RuntimeError, match="loss_and_grads"):
        AdamW(small_model("odd")).step()


def test_schedule_warms_up_then_follows_a_cosine():
    rates = [learning_rate(step, 100, lr=1.0, min_lr=0.1, warmup=10) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    assert rates[10 + 89 // 2] == pytest.approx(0.55, abs=0.02)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e18, 1e30])
def test_the_norm_is_that_of_the_numbers_whatever_their_size(scale):
    gradients = (np.random.default_rng(0).normal(size=3000) * scale).astype(np.float32)
    exact = np.linalg.norm(gradients.astype(np.float64))
    assert gradient_norm(gradients) == pytest.approx(exact, rel=1e-6)
    assert gradient_norm(np.zeros(3, np.float32)) == 0
    assert math.isinf(gradient_norm(np.array([np.inf, 1], np.float32)))
    assert math.isnan(gradient_norm(np.array([np.nan, 1], np.float32)))


def test_large_gradients_are_clipped_and_not_skipped():
    steps = {}
    for scale in (1.0, 1e18, 1e25):
        model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5))
        _, gradients = model.loss_and_grads([1, 2], [2, 3])
        gradients.flat *= scale / gradient_norm(gradients.flat)
        optimizer = AdamW(model, lr=1e-2)
        assert optimizer.step(grad_clip=1.0) == pytest.approx(scale, rel=1e-6)
        assert optimizer.steps == 1
        steps[scale] = model.parameters.flat
    assert np.isfinite(steps[1e25]).all()
    np.testing.assert_allclose(steps[1e18], steps[1.0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(steps[1e25], steps[1.0], rtol=1e-5, atol=1e-7)
