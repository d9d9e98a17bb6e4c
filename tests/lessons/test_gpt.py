"""The screen that holds all of GPT computes what numgpt.GPT does."""

import numpy as np
import pytest
from support import python

import numgpt
from numgpt.lessons import gpt as lesson

CONFIGS = {  # n_layer, n_head, width, context, vocabulary; batch, time
    "small": ((1, 1, 4, 8, 5), (1, 3)),
    "usual": ((2, 4, 16, 12, 19), (3, 12)),
    "deep": ((5, 2, 6, 9, 30), (2, 7)),
}


@pytest.fixture(params=CONFIGS)
def both(request):
    """numgpt.GPT, its weights by name, and what lessons.gpt wants to know of its shape."""
    (n_layer, n_head, width, context, vocabulary), shape = CONFIGS[request.param]
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": width, "n_positions": context}
    model = numgpt.GPT(numgpt.GPTConfig(vocab_size=vocabulary, **sizes), dtype=np.float64)
    rng = np.random.default_rng(1)
    for array in model.parameters.values():
        array += 0.1 * rng.normal(size=array.shape)
    batches = rng.integers(vocabulary, size=(10, 2, *shape))
    return model, {n: w.copy() for n, w in model.parameters.items()}, batches, (n_layer, n_head)


def test_loss_and_every_gradient_are_the_models(both):
    model, p, ((ids, targets), *_), sizes = both
    loss, g = lesson.gpt(p, ids, targets, *sizes)
    expected, gradients = model.loss_and_grads(ids, targets)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert g.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(g[name], gradient, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(lesson.gpt(p, ids, None, *sizes), model(ids), rtol=1e-12, atol=1e-12)


def test_ten_steps_give_the_same_weights(both):
    model, p, batches, sizes = both
    optimizer = numgpt.AdamW(model, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in p.items()}
    for step, (ids, targets) in enumerate(batches, 1):
        _, g = lesson.gpt(p, ids, targets, *sizes)
        lesson.adamw(p, g, moments, step, lr=1e-2)
        model.loss_and_grads(ids, targets)
        optimizer.step()
    for name, w in model.parameters.items():
        np.testing.assert_allclose(p[name], w, rtol=1e-10, atol=1e-10, err_msg=name)


def test_the_parameters_are_the_models(both):
    model, p, _, (n_layer, _) = both
    config = model.config
    new = lesson.new_parameters(
        np.random.default_rng(0), n_layer, config.n_embd, config.n_positions, config.vocab_size
    )
    assert {name: w.shape for name, w in new.items()} == {name: w.shape for name, w in p.items()}
    assert (new["ln_f.weight"] == 1).all()
    assert not new["h.0.attn.c_attn.bias"].any()
    assert new["wte"].std() == pytest.approx(0.02, rel=0.5)


def test_it_trains_and_writes():
    program = "from numgpt.lessons import gpt; gpt.main(steps=100, n_layer=1, width=32, batch=4)"
    made = python(program)
    first, *reports = (line for line in made.splitlines() if line.startswith("step "))
    last, text = reports[-1], made.partition("The value ")[2]
    assert len(reports) == 10
    assert first.startswith("step 1 ")
    assert last.startswith("step 100 ")
    assert float(last.split()[-1]) < float(first.split()[-1]) - 1
    assert len(text) >= 300
