"""Gradients: whatever the weights of targets, however a batch is cut, of what trains alone."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models.references import batch, small_model, their_logits, to_transformers
from support import assert_close

from numgpt import GPT, AdamW, GPTConfig, layers
from numgpt.models import Gradients, Parameters, data_parallel
from numgpt.runtime import SumsSideBySide

FAMILIES = ["default", "untied", "llama_grouped", "llama_biases"]


def cut(threads, monkeypatch):
    monkeypatch.setattr(data_parallel, "worthwhile_threads", lambda work, extra: threads)


def numerical(model, value, names=None, step=1e-6):
    """The derivative of value() along a random direction of the parameters, and the direction."""
    rng = np.random.default_rng(8)
    names = list(model.parameters) if names is None else names
    direction = {name: rng.normal(size=model.all_parameters[name].shape) for name in names}
    values = []
    for sign in (1, -1):
        for name, d in direction.items():
            model.all_parameters[name][...] += sign * step * d
        values.append(value())
        for name, d in direction.items():
            model.all_parameters[name][...] -= sign * step * d
    return (values[0] - values[1]) / (2 * step), direction


def along(gradients, direction):
    return sum((gradients[name] * d).sum() for name, d in direction.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_a_sum(name):
    model = small_model(name, np.float64)
    ids, targets = batch(model.config, (3, 7))
    weights = np.random.default_rng(1).normal(size=(3, 7))  # of either sign
    loss, gradients = model.loss_and_grads(ids, targets, weights=weights)
    assert loss == pytest.approx(-(weights * model.log_probs(ids, targets)).sum(), rel=1e-12)
    assert loss == pytest.approx(model.loss(ids, targets, weights), rel=1e-12)
    slope, direction = numerical(model, lambda: model.loss(ids, targets, weights))
    assert slope == pytest.approx(along(gradients, direction), rel=1e-6)


def test_the_mean_is_the_sum_of_one_nth():
    model = small_model("default", np.float64)
    ids, targets = batch(model.config, (3, 7))
    counted, mean = np.count_nonzero(targets != -100), model.loss(ids, targets)
    assert model.loss(ids, targets, 1 / counted) == pytest.approx(mean, rel=1e-14)
    summed = model.loss(ids, targets, np.ones((1, 7)))
    assert summed == pytest.approx(counted * mean, rel=1e-12)


@pytest.mark.parametrize("weights", ["x", np.ones(3), np.ones((2, 2, 7)), [[1, 2], [3]]])
def test_weights_that_fit_no_targets_are_refused(weights):
    model = small_model("default")
    ids, targets = batch(model.config, (2, 7))
    with pytest.raises(ValueError, match="one for each target") as error:
        model.loss(ids, targets, weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_log_probs_are_those_of_the_logits(name, threads, monkeypatch):
    model = small_model(name, np.float64)
    ids, targets = batch(model.config, (3, 7))
    logits = model(ids)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    cut(threads, monkeypatch)
    logp = model.log_probs(ids, targets)
    assert_close(logp, np.where(targets == -100, 0, expected))
    assert (logp[targets == -100] == 0).all()
    assert small_model(name).log_probs([1, 2], [2, 3]).dtype == np.float32


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_pytorchs(name):
    import torch

    model = small_model(name)
    ids, targets = batch(model.config, (3, 7))
    logits = torch.tensor(their_logits(to_transformers(model), ids))
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), reduction="none"
    )
    assert_close(model.log_probs(ids, targets), -losses.reshape(ids.shape).numpy())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_objective_sees_all_log_probabilities(name, threads, monkeypatch):
    """Σ over pairs of rows of log σ(their difference), which no row's gradient knows by itself."""
    model = small_model(name, np.float64)
    ids, targets = batch(model.config, (4, 7))

    def objective(logp):
        rows = logp.sum(axis=1)
        difference = rows[:2] - rows[2:]
        slope = -1 / (1 + np.exp(difference))
        dlogp = np.concatenate([slope, -slope])[:, None] * np.ones_like(logp)
        loss = np.log1p(np.exp(-difference)).sum()
        return loss, dlogp, {"margin": difference.mean()}

    cut(threads, monkeypatch)
    loss, gradients, metrics = model.value_and_grads(ids, targets, objective)
    expected, _, expected_metrics = objective(model.log_probs(ids, targets))
    assert loss == pytest.approx(expected, rel=1e-12)
    assert metrics == pytest.approx(expected_metrics)
    slope, direction = numerical(model, lambda: objective(model.log_probs(ids, targets))[0])
    assert slope == pytest.approx(along(gradients, direction), rel=1e-6)
    once = gradients.flat.copy()
    _, again, _ = model.value_and_grads(ids, targets, objective, add_to=gradients)
    assert_close(again.flat, 2 * once)


def test_the_mean_as_an_objective_is_the_loss():
    model = small_model("llama_grouped", np.float64)
    model.config.set_dropout(0.3)
    ids, targets = batch(model.config, (4, 7))
    counted = np.count_nonzero(targets != -100)

    def mean(logp):
        return -logp.sum() / counted, np.full(logp.shape, -1 / counted), {}

    expected, gradients = model.loss_and_grads(ids, targets, np.random.default_rng(3))
    loss, same, _ = model.value_and_grads(ids, targets, mean, np.random.default_rng(3))
    assert loss == pytest.approx(expected, rel=1e-12)
    assert_close(same.flat, gradients.flat)
    with pytest.raises(ValueError, match=r"dlogp has shape \(4,\), logp \(4, 7\)"):
        model.value_and_grads(ids, targets, lambda logp: (0, np.ones(4), {}))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("parts", [[3, 3], [1, 5], [2, 2, 2], [1, 4, 1]])
def test_cutting_a_batch_changes_no_gradient(name, parts, monkeypatch):
    """Micro-batches, threads, uneven counts, a part of which nothing counts."""
    model = small_model(name, np.float64)
    ids, targets = np.random.default_rng(0).integers(37, size=(2, 6, 9))
    targets[0] = -100
    targets[4, 2:] = -100
    loss, whole = model.loss_and_grads(ids, targets)
    counted = np.count_nonzero(targets != -100)
    for threads in (1, 2):
        cut(threads, monkeypatch)
        gradients, total, start = None, 0.0, 0
        for size in parts:
            rows = slice(start, start + size)
            part, gradients = model.loss_and_grads(
                ids[rows], targets[rows], weights=1 / counted, add_to=gradients
            )
            total, start = total + part, start + size
        assert total == pytest.approx(loss, rel=1e-12)
        assert model.gradients is gradients
        for parameter, expected in whole.items():
            largest = max(1e-3, np.abs(expected).max())
            difference = np.abs(gradients[parameter] - expected).max()
            assert difference <= 1e-12 * largest, parameter


@pytest.mark.parametrize("keeps", [0, 1 << 60])
@pytest.mark.parametrize("name", FAMILIES)
def test_kept_or_computed_again_is_the_same(name, keeps, monkeypatch):
    model = small_model(name, np.float64)
    ids, targets = batch(model.config, (3, 7))
    _, expected = model.loss_and_grads(ids, targets)
    monkeypatch.setattr("numgpt.models.language_model.KEPT_BYTES", keeps)
    _, gradients = model.loss_and_grads(ids, targets)
    assert_close(gradients.flat, expected.flat)


# --- freezing ---

PATTERNS = {
    "default": ("wte", "h.0.*", "h.1.attn.c_attn.bias"),
    "untied": ("wte", "wpe", "lm_head", "h.*.mlp.*"),
    "llama_grouped": ("embed_tokens.weight", "layers.1.self_attn.q_proj.weight"),
    "llama_biases": ("*.gate_proj.*", "*.k_proj.bias", "norm.weight"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_frozen_gets_no_gradient_and_does_not_change(name):
    model = small_model(name, np.float64)
    ids, targets = batch(model.config, (3, 7))
    _, whole = model.loss_and_grads(ids, targets)
    model.freeze(*PATTERNS[name])
    assert model.gradients is None
    frozen = set(model.parameters) - set(model.trained)
    assert frozen
    _, gradients = model.loss_and_grads(ids, targets)
    assert set(gradients) == set(model.trained)
    assert gradients.flat.size == model.num_parameters(trainable=True) < model.num_parameters()
    for parameter in model.trained:
        assert_close(gradients[parameter], whole[parameter], parameter)
    before = {parameter: array.copy() for parameter, array in model.parameters.items()}
    optimizer = AdamW(model, lr=0.1)
    assert optimizer.m.size == gradients.flat.size
    optimizer.step()
    for parameter, array in model.parameters.items():
        assert (array == before[parameter]).all() == (parameter in frozen), parameter
    model.unfreeze()
    assert model.trained == model.parameters.layout
    with pytest.raises(RuntimeError, match="other parameters train now"):
        optimizer.step()
    with pytest.raises(ValueError, match="of other parameters than those that train now"):
        model.loss_and_grads(ids, targets, add_to=gradients)


def test_a_frozen_models_step_is_that_of_the_whole_for_what_trains():
    """Moments and updates follow the names, wherever these lie."""
    models = [small_model("untied", np.float64) for _ in range(2)]
    ids, targets = batch(models[0].config, (3, 7))
    models[1].freeze("h.0.*", "wpe", "ln_f.bias")
    for model in models:
        optimizer = AdamW(model, lr=0.01)
        for _ in range(3):
            model.loss_and_grads(ids, targets)
            optimizer.step()
            if model is models[0]:  # the frozen ones stay where they were
                for name in set(models[1].parameters) - set(models[1].trained):
                    model.parameters[name][...] = models[1].parameters[name]
    for name in models[1].parameters:
        assert_close(models[1].parameters[name], models[0].parameters[name], name)


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_need_not_lie_on_one_buffer(name):
    """As weights in fewer bits won't."""
    whole = small_model(name, np.float64)
    arrays = {name: array.copy(order="F") for name, array in whole.parameters.items()}
    apart = type(whole)(whole.config, parameters=Parameters.separate(arrays))
    assert apart.parameters.flat is None
    assert apart.parameters.nbytes == whole.parameters.nbytes
    ids, targets = batch(whole.config, (3, 7))
    for model in (whole, apart):
        model.freeze(*PATTERNS[name])
        optimizer = AdamW(model, lr=0.01)
        for _ in range(2):
            model.loss_and_grads(ids, targets)
            optimizer.step(grad_clip=1.0)
    for model in (apart, copy.deepcopy(apart)):
        for parameter, array in whole.parameters.items():
            assert_close(model.parameters[parameter], array, parameter)
    ours, theirs = (model.generate([1, 2], max_new_tokens=3) for model in (apart, whole))
    np.testing.assert_array_equal(ours, theirs)


def test_freezing_by_names_patterns_and_all():
    model = small_model("default")
    model.freeze()
    assert model.num_parameters(trainable=True) == 0
    assert model.loss_and_grads([1, 2], [2, 3])[1].flat.size == 0
    model.unfreeze("h.1.*")
    assert all(name.startswith("h.1.") for name in model.trained)
    model.freeze("h.1.mlp.c_fc.weight")
    assert "h.1.mlp.c_fc.weight" not in model.trained
    with pytest.raises(ValueError, match="no parameter is named 'wtee': there are wte"):
        model.freeze("wtee")


FROZEN = """
import re, sys, numpy as np, numgpt

def private_bytes():  # copies of mapped pages among them
    lines = open("/proc/self/smaps_rollup").read()
    return int(re.search(r"Private_Dirty: +(\\d+) kB", lines)[1]) * 1024

model = numgpt.GPT.from_pretrained(sys.argv[1])
if sys.argv[2] == "frozen":
    model.freeze()
    model.unfreeze("ln_f.*")
ids = np.arange(8)[None]
before = private_bytes()
optimizer = numgpt.AdamW(model)
model.loss_and_grads(ids, ids)
optimizer.step()
print((private_bytes() - before) / model.parameters.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")
def test_a_frozen_model_needs_no_memory_of_its_own(tmp_path):
    """No gradients, no moments, no private copy of the mapped weights."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=512, n_positions=16, vocab_size=9000)
    GPT(config).save_pretrained(tmp_path)
    grown = {}
    for what in ("frozen", "whole"):
        command = [sys.executable, "-c", FROZEN, str(tmp_path), what]
        grown[what] = float(subprocess.run(command, check=True, capture_output=True).stdout)
    assert grown["frozen"] < 1 / 4
    assert grown["whole"] > 3  # the check sees what it should: gradients, moments, a private copy


# --- the object ---


def test_gradients_are_sums_of_contributions():
    gradients = Gradients({"a": (0, (2, 3)), "b": (6, (3,)), "c": (9, (2, 3))}, np.float64)
    gradients.accumulator("a").add(np.ones((2, 3)))
    gradients.accumulator("a").add(np.ones((2, 3)))
    gradients.accumulator("b").T.add(np.arange(3.0))
    assert "z" not in gradients
    gradients.accumulator("z").add(np.ones(5))  # frozen: goes nowhere
    assert (gradients["a"] == 2).all()
    assert (gradients["c"] == 0).all()
    np.testing.assert_array_equal(gradients.flat[6:9], np.arange(3))
    other = Gradients(gradients.layout, np.float64)
    other.accumulator("c").add_outer(np.ones((1, 2)), np.ones((1, 3)))
    other.merge(gradients)
    assert (other["a"] == 2).all()
    assert (other["c"] == 1).all()
    gradients.clear()
    assert not gradients.flat.any()
    joined = Gradients({"a": (0, (2, 3)), "b": (6, (4, 3)), "c": (18, (1, 3))}, np.float64)
    columns = [slice(0, 2), slice(2, 6)]
    x, dy = np.ones((1, 3)), np.arange(1.0, 7)[None]
    together = joined.beside(["a", "b"], columns, transposed=True)
    assert together.out.shape == (3, 6)
    together.add_outer(x, dy)
    for names in (["a", "c"], ["b", "c"]):  # not one after another; not both are written
        assert type(joined.beside(names, columns, transposed=True)) is SumsSideBySide
    one_frozen = joined.beside(["z", "b"], columns, transposed=True)
    assert one_frozen.needed
    one_frozen.add_outer(x, dy)
    assert not joined.beside(["y", "z"], columns).needed
    np.testing.assert_array_equal(joined["a"], [[1] * 3, [2] * 3])
    np.testing.assert_array_equal(joined["b"], [[3 + 3] * 3, [4 + 4] * 3, [5 + 5] * 3, [6 + 6] * 3])
    assert not joined["c"].any()


def test_an_error_before_anything_is_computed_leaves_no_gradients_either():
    model = small_model("default")
    for call in (
        lambda: model.loss_and_grads([99], [1]),
        lambda: model.value_and_grads([1], [1], lambda logp: 1 / 0),
    ):
        model.loss_and_grads([1, 2], [2, 3])
        with pytest.raises((ValueError, ZeroDivisionError)):
            call()
        assert model.gradients is None


def test_other_parameters_are_taken_whole():
    one, other = small_model("default"), small_model("default")
    one.note = "mine"
    other.parameters.flat[:] *= 0.5
    one.freeze("wte")
    one.parameters = other.parameters
    np.testing.assert_array_equal(one([1, 2]), other([1, 2]))
    assert one.trained == one.parameters.layout
    assert copy.deepcopy(one).note == "mine"


@pytest.mark.parametrize("shape", [(5,), (1,), (), (3, 1)])
def test_weights_and_gradients_of_other_shapes_are_refused_by_the_layer(shape):
    x, weight, targets = np.ones((3, 4)), np.ones((5, 4)), np.array([0, 1, 2])
    with pytest.raises(ValueError, match="weights has shape"):
        layers.linear_cross_entropy(x, weight, targets, np.ones(shape))
    _, cache = layers.linear_log_probs_forward(x, weight, targets)
    with pytest.raises(ValueError, match="dlogp has shape"):
        layers.linear_log_probs_backward(np.ones(shape), cache)
