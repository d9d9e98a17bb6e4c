"""LoRA on models: what trains, what stays, merging, several adapters."""

import copy
import pickle

import numpy as np
import pytest
from models.references import batch, small_model
from models.test_gradients import along, cut, numerical
from support import assert_close, fails_at

from numgpt import AdamW, LoRAConfig
from numgpt.layers import lora_backward, lora_forward
from numgpt.models import data_parallel
from numgpt.models.lora import LoRA

FAMILIES = ["default", "untied", "llama_grouped", "llama_biases"]


def adapted(name, dtype=np.float64, **options):
    """A model with an adapter whose B is not 0."""
    model = small_model(name, dtype)
    options = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"} | options
    model.add_adapter(LoRAConfig(**options), seed=4)
    randomise(model)
    return model


def randomise(model, seed=5):
    rng = np.random.default_rng(seed)
    for array in model.adapter.parameters.values():
        array[...] = rng.normal(scale=0.3, size=array.shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_adapter_changes_nothing(name):
    model = small_model(name)
    ids, _ = batch(model.config, (2, 7))
    before = model(ids)
    model.add_adapter(LoRAConfig(target_modules="all-linear"))
    np.testing.assert_array_equal(model(ids), before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_numerical_derivatives(name, dropout):
    model = adapted(name, lora_dropout=dropout)
    ids, targets = batch(model.config, (2, 7))

    def loss():
        return model.loss_and_grads(ids, targets, np.random.default_rng(3))[0]

    _, gradients = model.loss_and_grads(ids, targets, np.random.default_rng(3))
    assert set(gradients) == set(model.adapter.parameters)
    slope, direction = numerical(model, loss, list(gradients))
    assert slope == pytest.approx(along(gradients, direction), rel=1e-6)


def test_dropout_is_on_the_branch_alone():
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=shape) for shape in ((50, 4), (2, 4), (3, 2)))
    y, cache = lora_forward(x, a, b, 1.0, 0.5, np.random.default_rng(1))
    mask = cache.dropout.kept * cache.dropout.scale
    assert_close(y, (mask * x) @ a.T @ b.T)
    dx, da, _ = lora_backward(np.ones_like(y), cache)
    assert_close(dx, mask * (np.ones_like(y) @ b @ a))
    assert_close(da, (np.ones_like(y) @ b).T @ (mask * x))


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_is_the_same_and_unmerged_bit_for_bit(name):
    model = adapted(name)
    ids, _ = batch(model.config, (2, 7))
    weights, logits = model.parameters.flat.copy(), model(ids)
    model.merge_adapter()
    assert not np.array_equal(model.parameters.flat, weights)
    assert_close(model(ids), logits)
    trains, leaves = lambda: model.loss_and_grads(ids, ids), lambda: model.set_adapter(None)
    for change in (trains, model.merge_adapter, model.freeze, leaves):
        with pytest.raises(ValueError, match="unmerge_adapter first"):
            change()
    model.unmerge_adapter()
    np.testing.assert_array_equal(model.parameters.flat, weights)
    np.testing.assert_array_equal(model(ids), logits)
    with pytest.raises(ValueError, match="no adapter is merged"):
        model.unmerge_adapter()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapter_trains_and_the_base_stays(name):
    model = small_model(name)
    model.add_adapter(LoRAConfig(r=4, target_modules="all-linear"))
    base = model.parameters.flat.copy()
    optimizer = AdamW(model, lr=1e-2, weight_decay=0.0)
    assert optimizer.m.size == model.num_parameters(trainable=True)
    assert optimizer.m.size == sum(array.size for array in model.adapter.parameters.values())
    ids, targets = batch(model.config, (2, 7))
    losses = []
    for _ in range(30):
        loss, _ = model.loss_and_grads(ids, targets)
        optimizer.step()
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_array_equal(model.parameters.flat, base)
    model.set_adapter(None)
    assert model.loss(ids, targets) == pytest.approx(losses[0], rel=1e-5)
    assert not model.trained
    model.set_adapter("default")
    assert model.loss(ids, targets) < losses[0]


@pytest.mark.parametrize("threads", [2, 3])
def test_however_a_batch_is_cut(threads, monkeypatch):
    model = adapted("llama_grouped")
    ids, targets = batch(model.config, (3, 7))
    cut(1, monkeypatch)
    loss, whole = model.loss_and_grads(ids, targets)
    cut(threads, monkeypatch)
    parts_loss, parts = model.loss_and_grads(ids, targets)
    assert parts_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in whole.items():
        np.testing.assert_allclose(parts[name], gradient, rtol=1e-9, atol=1e-12)
    assert data_parallel.worthwhile_threads(1, 1) == threads


def test_several_adapters_one_active():
    model = small_model("default")
    ids, _ = batch(model.config, (2, 7))
    logits = {None: model(ids)}
    for seed, name in enumerate(("poems", "letters")):
        model.add_adapter(LoRAConfig(r=2), name)
        randomise(model, seed)
        logits[name] = model(ids)
    for name, expected in logits.items():
        model.set_adapter(name)
        np.testing.assert_array_equal(model(ids), expected)
    assert not np.array_equal(logits["poems"], logits["letters"])
    with pytest.raises(ValueError, match="there are poems, letters"):
        model.set_adapter("prose")
    with pytest.raises(ValueError, match="an adapter 'poems' already"):
        model.add_adapter(name="poems")
    optimizer = AdamW(model)
    model.set_adapter("poems")
    model.loss_and_grads(ids, ids)
    with pytest.raises(RuntimeError, match="make a new one"):
        optimizer.step()
    model.set_adapter("letters")
    model.delete_adapter("letters")
    np.testing.assert_array_equal(model(ids), logits[None])
    with pytest.raises(ValueError, match="no adapter 'letters': there are poems"):
        model.delete_adapter("letters")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_their_own_adapter(copied):
    model = adapted("llama_grouped")
    ids, targets = batch(model.config, (2, 7))
    other = copied(model)
    np.testing.assert_array_equal(other(ids), model(ids))
    before = model(ids)
    other.loss_and_grads(ids, targets)
    AdamW(other, lr=0.1).step()
    assert not np.array_equal(other(ids), before)
    np.testing.assert_array_equal(model(ids), before)


def test_other_weights_under_an_adapter_stay_frozen():
    model, other = small_model("default"), small_model("default")
    model.add_adapter()
    model.parameters = other.parameters
    assert model.trained == model.adapter.parameters.layout
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter first"):
        model.parameters = other.parameters


def test_parts_of_base_and_adapter_train_together():
    model = adapted("default")
    model.unfreeze("ln_f.*")
    expected = set(model.adapter.parameters) | {"ln_f.weight", "ln_f.bias"}
    ids, targets = batch(model.config, (2, 7))
    _, gradients = model.loss_and_grads(ids, targets)
    assert set(gradients) == expected
    before = model.parameters["ln_f.bias"].copy()
    AdamW(model, lr=0.1).step()
    assert not np.array_equal(model.parameters["ln_f.bias"], before)
    model.freeze("*.lora_A.weight")
    assert set(model.trained) == {name for name in expected if "lora_A" not in name}


def test_first_weights_and_scale():
    model = small_model("default")
    model.add_adapter(LoRAConfig(r=4, lora_alpha=6), seed=1)
    a = model.adapter.parameters["h.0.attn.c_attn.lora_A.weight"]
    assert a.shape == (4, 16)
    assert 0.2 < np.abs(a).max() <= 1 / np.sqrt(16)
    assert not model.adapter.parameters["h.0.attn.c_attn.lora_B.weight"].any()
    assert LoRAConfig(r=4, lora_alpha=6).scale_of("any") == 1.5
    assert LoRAConfig(r=4, lora_alpha=6, use_rslora=True).scale_of("any") == 3
    assert model.adapter.names() == ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    llama = small_model("llama_grouped")
    llama.add_adapter()
    assert {name.rpartition(".")[2] for name in llama.adapter.names()} == {"q_proj", "v_proj"}


def test_targets_by_expression_and_whole_name():
    model = small_model("default")
    model.add_adapter(LoRAConfig(target_modules=r"h\.1\..*c_proj"), "one")
    assert model.adapter.names() == ["h.1.attn.c_proj", "h.1.mlp.c_proj"]
    model.add_adapter(LoRAConfig(target_modules=["h.0.mlp.c_fc"]), "two")
    assert model.adapter.names() == ["h.0.mlp.c_fc"]


def test_an_adapter_must_be_written_or_merged(tmp_path):
    model = adapted("default", np.float32)
    with pytest.raises(ValueError, match="save_adapter"):
        model.save_pretrained(tmp_path)
    model.merge_adapter()
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["", None, 3])
def test_an_adapter_has_a_name(name):
    model = small_model("default")
    with pytest.raises(ValueError, match=f"the adapter's name is {name!r}: expected a string"):
        model.add_adapter(name=name)
    assert model.adapters == {}


def test_a_merge_that_fails_changes_nothing(monkeypatch):
    model = small_model("default")
    model.add_adapter()
    model.adapter.parameters.flat[:] = 0.1
    ids, _ = batch(model.config, (2, 7))
    before, own = model(ids), model.parameters.flat.copy()
    fails_at(monkeypatch, LoRA, "delta", 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        model.merge_adapter()
    assert not model.is_merged
    np.testing.assert_array_equal(model.parameters.flat, own)
    np.testing.assert_array_equal(model(ids), before)
