"""Whole models against transformers: logits, loss, every gradient, a training run."""

import fnmatch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import references
from models.references import (
    BATCHES,
    EVERY_CONFIG,
    TRAINED,
    batch,
    our_results,
    small_model,
    their_results,
    to_transformers,
)
from models.test_gradients import along, cut, numerical
from support import GOLDENS, assert_close, fails_at

from numgpt import GPT, AdamW, GPTConfig, Llama, LlamaConfig
from numgpt.layers import TokenStatistics
from numgpt.models import Gradients, data_parallel, parameters
from numgpt.runtime import SideBySide


def same(results: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert results.keys() == expected.keys()
    for key, array in expected.items():
        assert_close(results[key], array, key)


@pytest.mark.parametrize("label", BATCHES)
@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_equals_recorded_transformers(name, label):
    model = small_model(name)
    results = our_results(model, *batch(model.config, BATCHES[label]))
    prefix = f"{name}/{label}/"
    with np.load(GOLDENS / "models.npz") as goldens:
        recorded = {key[len(prefix) :]: goldens[key] for key in goldens if key.startswith(prefix)}
    same(results, recorded)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in EVERY_CONFIG
        for dtype in (np.float32, np.float64)
        # transformers' Llama computes norms and angles in float32, whatever its weights are
        if dtype == np.float32 or not name.startswith("llama")
    ],
)
@given(rows=st.integers(1, 4), time=st.integers(1, 11), seed=st.integers(0, 2**32))
@settings(max_examples=5)
def test_equals_transformers_on_any_batch(name, dtype, rows, time, seed):
    model = small_model(name, dtype)
    ids, targets = batch(model.config, (rows, time), seed)
    if isinstance(model, Llama):  # a norm enlarges the gradient at an x near 0, its rounding too
        model.parameters["embed_tokens.weight"][...] *= 10
    same(our_results(model, ids, targets), their_results(model, ids, targets))


@pytest.mark.live("torch", "transformers")
@pytest.mark.slow
def test_equals_transformers_at_full_size():
    model = GPT(GPTConfig(), seed=0)
    ids, targets = batch(model.config, (4, 64))
    same(our_results(model, ids, targets), their_results(model, ids, targets))


def train(
    name: str = "default", dropout_seed: int | None = None, dropout: float = 0.0
) -> np.ndarray:
    model = small_model(name)
    model.config.set_dropout(dropout)
    rng = None if dropout_seed is None else np.random.default_rng(dropout_seed)
    optimizer = AdamW(model, **references.ADAMW)
    losses = []
    for step in range(references.TRAINING_STEPS):
        ids, targets = batch(model.config, (4, 13), seed=100 + step % 5)
        losses.append(model.loss_and_grads(ids, targets, rng)[0])
        optimizer.step(grad_clip=1.0)
    return np.array(losses)


@pytest.mark.parametrize("name", TRAINED)
def test_training_follows_recorded_pytorch(name):
    with np.load(GOLDENS / "models.npz") as goldens:
        expected = goldens[f"{name}/training/losses"]
    np.testing.assert_allclose(train(name), expected, rtol=1e-4)
    assert expected[-1] < expected[0] - 0.2  # it does learn


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", TRAINED)
def test_training_follows_pytorch(name):
    np.testing.assert_allclose(train(name), references.their_training(small_model(name)), rtol=1e-4)


def test_training_with_dropout_is_reproducible():
    first = train(dropout_seed=1, dropout=0.2)
    np.testing.assert_array_equal(first, train(dropout_seed=1, dropout=0.2))
    assert not np.array_equal(first, train(dropout_seed=2, dropout=0.2))
    assert not np.array_equal(first, train())
    np.testing.assert_array_equal(train(), train(dropout_seed=1, dropout=0.0))


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_gradient_with_dropout_is_the_numerical_derivative(name):
    model = small_model(name, np.float64)
    model.config.set_dropout(0.3)
    ids, targets = batch(model.config, (3, 7))

    def loss():
        return model.loss_and_grads(ids, targets, np.random.default_rng(7))[0]

    loss()
    gradients = model.gradients
    slope, direction = numerical(model, loss)
    assert slope == pytest.approx(along(gradients, direction), rel=1e-6)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_shares_of_a_batch_give_what_the_whole_gives(threads, monkeypatch):
    model = small_model("default", np.float64)
    ids, targets = np.random.default_rng(0).integers(37, size=(2, 5, 9))
    targets[0, 3:] = targets[4] = -100  # shares then weigh differently, one has no target
    first, whole = model.loss_and_grads(ids, targets)
    whole = whole.flat
    cut(threads, monkeypatch)
    assert len(data_parallel.cut_batch(1, targets.shape)) == min(threads, 5)
    loss, gradients = model.loss_and_grads(ids, targets)
    assert type(loss) is float
    assert loss == pytest.approx(first, rel=1e-12)
    assert model.loss(ids, targets) == pytest.approx(first, rel=1e-12)
    largest = np.abs(whole).max()
    np.testing.assert_allclose(gradients.flat, whole, rtol=0, atol=1e-12 * largest)
    counted = np.count_nonzero(targets != -100)
    model.loss_and_grads(ids, targets, weights=2 / counted, add_to=gradients)
    np.testing.assert_allclose(gradients.flat, 3 * whole, rtol=0, atol=3e-12 * largest)
    loss, gradients = model.loss_and_grads(ids, np.full_like(targets, -100))
    assert loss == 0
    assert not gradients.flat.any()


def test_dropout_draws_one_number_however_many_shares_there_are(monkeypatch):
    model = small_model("default", np.float64)
    model.config.resid_pdrop = 0.5
    ids = np.tile(batch(model.config, (1, 7))[0], (6, 1))  # the same sequence six times
    states, gradients = [], []
    for threads in (1, 2, 3, 2):
        cut(threads, monkeypatch)
        rng = np.random.default_rng(0)
        gradients.append(model.loss_and_grads(ids, ids, rng)[1].flat)
        states.append(rng.bit_generator.state)
    assert states[0] == states[1] == states[2]
    np.testing.assert_array_equal(gradients[1], gradients[3])
    assert not np.array_equal(gradients[0], gradients[1])
    shares = data_parallel.cut_batch(1, ids.shape, np.random.default_rng(0))
    assert shares[0].rng.random() != shares[1].rng.random()


def test_an_error_on_the_way_leaves_no_gradients(monkeypatch):
    model = small_model("default", np.float64)
    ids, targets = batch(model.config, (4, 7))
    cut(2, monkeypatch)
    whole = model.loss_and_grads(ids, targets)[1].flat
    for adds in (False, True):
        add_to = model.loss_and_grads(ids, targets)[1] if adds else None
        with monkeypatch.context() as patch:
            fails_at(patch, GPT, "forward", 2, MemoryError("no room"))
            with pytest.raises(MemoryError):
                model.loss_and_grads(ids, targets, add_to=add_to)
        assert model.gradients is None
        model.loss_and_grads(ids, targets, add_to=add_to)
        assert_close(model.gradients.flat, whole)


def test_gradients_that_a_caller_keeps_stay():
    model = small_model("default")
    ids, targets = batch(model.config, (3, 7))
    _, kept = model.loss_and_grads(ids, targets)
    before = kept.flat.copy()
    model.loss_and_grads(ids[:1], targets[:1])
    np.testing.assert_array_equal(kept.flat, before)


@pytest.mark.parametrize("name", ["default", "llama_grouped"])
@given(time=st.integers(2, 24), cut=st.integers(1, 23), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_later_token_never_changes_an_earlier_logit(name, time, cut, seed):
    cut = min(cut, time - 1)
    model = small_model(name)
    rng = np.random.default_rng(seed)
    ids = rng.integers(37, size=(2, time))
    changed = ids.copy()
    changed[:, cut:] = rng.integers(37, size=(2, time - cut))
    np.testing.assert_array_equal(model(ids)[:, :cut], model(changed)[:, :cut])


def test_initialisation_is_gpt2s():
    model = GPT(GPTConfig(n_layer=8, n_head=2, n_embd=128, vocab_size=500), seed=0)
    p = model.parameters
    assert p["wte"].std() == pytest.approx(0.02, rel=0.02)
    assert p["h.3.attn.c_attn.weight"].std() == pytest.approx(0.02, rel=0.02)
    for name in ("h.0.attn.c_proj.weight", "h.7.mlp.c_proj.weight"):
        assert p[name].std() == pytest.approx(0.02 / 4, rel=0.02)
    assert (p["ln_f.weight"] == 1).all()
    assert (p["h.1.mlp.c_fc.bias"] == 0).all()
    assert not np.array_equal(GPT(model.config, seed=1).parameters["wpe"], p["wpe"])
    np.testing.assert_array_equal(GPT(model.config, seed=0).parameters.flat, p.flat)


@pytest.mark.parametrize(
    ("name", "last_bias"),
    [("default", "h.1.attn.c_attn.bias"), ("llama_biases", "layers.1.mlp.up_proj.bias")],
)
def test_parameters_and_gradients_are_views_of_one_layout(name, last_bias):
    model = small_model(name)
    model.loss_and_grads([1, 2, 3], [2, 3, 4])
    assert model.gradients.layout == model.parameters.layout
    assert model.num_parameters() == model.parameters.flat.size
    for parameter, array in model.parameters.items():
        assert np.shares_memory(array, model.parameters.flat), parameter
    model.parameters.flat[:] = 0
    assert not model.parameters[last_bias].any()


def test_accepts_a_list_a_vector_and_a_batch():
    model = small_model("default")
    logits = model([[1, 2, 3]])
    assert logits.shape == (1, 3, 37)
    assert logits.dtype == np.float32
    for ids in ([1, 2, 3], np.array([1, 2, 3], np.uint16), np.array([[1, 2, 3]])):
        np.testing.assert_array_equal(model(ids), logits)
    assert model.loss([1, 2], [2, -100]) == pytest.approx(model.loss([1], [2]), rel=1e-5)


def test_initialisation_is_llamas():
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "vocab_size": 500}
    p = Llama(LlamaConfig(**(references.LLAMA_SMALL | sizes)), seed=0).parameters
    for name in ("embed_tokens.weight", "layers.1.mlp.down_proj.weight", "lm_head.weight"):
        assert p[name].std() == pytest.approx(0.02, rel=0.05), name
    assert (p["norm.weight"] == 1).all()


@pytest.mark.parametrize("name", ["llama_grouped", "llama_biases"])
def test_projections_together_give_what_each_gives(name, monkeypatch):
    model = small_model(name, np.float64)
    ids, _ = batch(model.config, (2, 7))
    q, k, v = (f"layers.1.self_attn.{part}_proj.weight" for part in "qkv")
    p = model.parameters
    joined = p.beside([q, k, v], transposed=True)
    np.testing.assert_array_equal(joined, np.concatenate([p[q], p[k], p[v]]).T)
    assert np.shares_memory(joined, p.flat)
    for names in ([q, v], [k, q]):  # not one after another
        apart = p.beside(names, transposed=True)
        assert type(apart) is SideBySide
        np.testing.assert_array_equal(apart, np.concatenate([p[name] for name in names]).T)
        np.testing.assert_array_equal(apart[np.array([3, 1])], np.asarray(apart)[[3, 1]])
    together = model(ids)
    targets = np.roll(ids, -1, axis=1)
    _, gradients = model.loss_and_grads(ids, targets)
    block = model.blocks[1]
    assert type(block.attention.qkv.weight) is type(block.mlp.fc.weight) is np.ndarray
    monkeypatch.setattr(parameters, "_joined", lambda flat, layout, names: None)
    model.build()
    assert len(model.blocks[1].attention.qkv.weight.matrices) == 3
    assert_close(model(ids), together)
    assert_close(model.loss_and_grads(ids, targets)[1].flat, gradients.flat)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", ["default", "llama_grouped"])
def test_hidden_states_and_attentions_equal_transformers(name):
    import torch

    model = small_model(name)
    theirs = to_transformers(model).eval()
    theirs.set_attn_implementation("eager")
    ids = np.random.default_rng(0).integers(36, size=(2, 7))
    out = theirs(torch.tensor(ids), output_hidden_states=True, output_attentions=True)
    for ours, expected in (
        (model.hidden_states(ids), out.hidden_states),
        (model.attentions(ids), out.attentions),
    ):
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-4, atol=1e-5)


# --- run, and the way back ---


def of_run(model, ids, targets, gradients, **options):
    """A loss, from the primitive."""
    hidden, back = model.run(ids, **options)
    weights = np.full(targets.size, 1 / targets.size, hidden.dtype)
    loss, dhidden = model.unembedding.cross_entropy(hidden, targets.ravel(), weights, gradients)
    return loss, dhidden, back


@pytest.mark.parametrize("name", ["default", "untied", "llama_grouped", "llama_qwen3"])
@pytest.mark.parametrize("frozen", [(), ("*",), ("wte", "wpe", "*embed*", "h.0.*", "layers.0.*")])
def test_run_and_the_way_back_are_loss_and_grads(name, frozen, monkeypatch):
    model = small_model(name, np.float64)
    ids, targets = np.random.default_rng(0).integers(37, size=(2, 5, 9))
    for patterns in frozen:
        if patterns == "*" or any(fnmatch.fnmatch(n, patterns) for n in model.parameters):
            model.freeze(patterns)
    expected, of_all = model.loss_and_grads(ids, targets)
    for threads in (1, 3):
        cut(threads, monkeypatch)
        gradients = Gradients(model.trained, np.float64)
        loss, dhidden, back = of_run(model, ids, targets, gradients)
        back(dhidden, gradients)
        assert loss == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(gradients.flat, of_all.flat, rtol=0, atol=1e-13)
        with pytest.raises(RuntimeError, match="back works once"):
            back(dhidden, gradients)


def test_the_way_back_refuses_what_it_would_lose():
    model = small_model("default")
    ids, targets = batch(model.config, (2, 7))
    gradients = Gradients(model.trained, np.float32)
    _, dhidden, back = of_run(model, ids, targets, gradients)
    with pytest.raises(ValueError, match=r"dhidden has shape \(13, 16\): expected \(14, 16\)"):
        back(dhidden[1:], gradients)
    model.freeze("wte", "wpe", "h.0.*")
    _, dhidden, back = of_run(model, ids, targets, Gradients(model.trained, np.float32))
    with pytest.raises(ValueError, match="frozen in this run"):
        back(dhidden, gradients)
    model.add_adapter()
    model.merge_adapter()
    _, dhidden, back = of_run(model, ids, targets, Gradients({}, np.float32))
    with pytest.raises(ValueError, match="an adapter is merged"):
        back(dhidden, gradients)


def test_after_an_error_the_way_back_is_closed():
    model = small_model("default")
    ids, targets = batch(model.config, (2, 7))

    def fails(_):
        raise KeyError("mine")

    gradients = Gradients(model.trained, np.float32)
    hooks = {"blocks.0.hook_resid_post": fails}
    _, dhidden, back = of_run(model, ids, targets, gradients, backward_hooks=hooks)
    with pytest.raises(KeyError, match="mine"):
        back(dhidden, gradients)
    with pytest.raises(RuntimeError, match="back works once"):
        back(dhidden, gradients)


def test_a_call_that_fails_leaves_statistics_and_earlier_gradients():
    model = small_model("default")
    ids, targets = batch(model.config, (2, 7))
    _, gradients = model.loss_and_grads(ids, targets)
    before, statistics = gradients.flat.copy(), TokenStatistics()

    def fails(_):
        raise KeyError("mine")

    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.loss_and_grads(ids + 1000, targets, add_to=gradients, statistics=statistics)
    np.testing.assert_array_equal(gradients.flat, before)
    hooks = {"hook_embed": fails}
    with pytest.raises(KeyError, match="mine"):
        model.loss_and_grads(ids, targets, statistics=statistics, backward_hooks=hooks)
    assert statistics == TokenStatistics()
    with pytest.raises(ValueError, match="could not convert"):
        model.value_and_grads(ids, targets, lambda logp: ("not a number", logp, {}))
    assert model.gradients is None


@pytest.mark.parametrize("name", ["default", "llama_grouped"])
def test_the_last_tokens_alone_without_a_cache(name):
    model = small_model(name, np.float64)
    ids, _ = batch(model.config, (3, 7))
    whole = model.hidden(ids).reshape(3, 7, -1)
    assert_close(model.hidden(ids, last_only=True), whole[:, -1])
    assert_close(model.hidden(ids, last_only=True, hooks={}), whole[:, -1])
