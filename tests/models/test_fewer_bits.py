"""Models whose matrices are kept in fewer bits: what they compute, what they refuse, adapters."""

import copy
import pickle

import numpy as np
import pytest
from models.references import GROUPED, LLAMA_SMALL
from support import assert_close

import numgpt
from numgpt import GPT, GPTConfig, Llama, LlamaConfig, LoRAConfig, formats, insight
from numgpt.models.parameters import Parameters
from numgpt.runtime import FewerBits, Weight
from numgpt.runtime.fewer_bits import KINDS

GPT2 = GPTConfig(n_layer=2, n_head=2, n_embd=64, n_positions=32, vocab_size=130)
SIZES = {"hidden_size": 128, "intermediate_size": 192, "max_position_embeddings": 32}
LLAMA = LlamaConfig(**LLAMA_SMALL | GROUPED | SIZES | {"vocab_size": 130})
MODELS = {"GPT-2": (GPT, GPT2), "Llama": (Llama, LLAMA)}
IDS = np.random.default_rng(0).integers(0, 130, (2, 20))


@pytest.fixture(params=MODELS)
def directory(request, tmp_path):
    kind, config = MODELS[request.param]
    model = kind(config, seed=1)
    for name, array in model.parameters.items():  # so that nothing is nearly 0
        array *= 3 if array.ndim > 1 and name != "wpe" else 1
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(params=KINDS)
def dtype(request):
    return request.param


@pytest.fixture
def model(directory, dtype):
    return formats.load_model(directory, dtype=dtype)


def dequantised(model):
    """A model of the rounded weights, in float32."""
    arrays = {name: np.array(array) for name, array in model.parameters.items()}
    return type(model)(model.config, parameters=Parameters.separate(arrays))


def test_it_computes_what_the_rounded_weights_compute(model, directory, dtype):
    whole = formats.load_model(directory)
    rounded = dequantised(model)
    for name, array in whole.parameters.items():
        kept = model.parameters[name]
        assert kept.shape == array.shape
        multiplied = array.ndim == 2 and not name.startswith("wpe")
        assert isinstance(kept, Weight) is multiplied
        if not multiplied:
            np.testing.assert_array_equal(kept, array)
    logits, expected = model(IDS), rounded(IDS)
    # oneDNN rounds what is multiplied as well: 2⁻⁸ of it in bfloat16, so some 1 % after two blocks.
    limit = 0.03 if dtype == "bfloat16" else 1e-3
    assert np.abs(logits - expected).max() < limit * np.abs(expected).max()
    assert not np.array_equal(expected, whole(IDS))
    assert model.num_parameters() == whole.num_parameters()
    assert model.parameters.nbytes < {"bfloat16": 0.6, "int8": 0.4}[dtype] * whole.parameters.nbytes
    loss = model.loss(IDS[:, :-1], IDS[:, 1:])
    assert loss == pytest.approx(rounded.loss(IDS[:, :-1], IDS[:, 1:]), rel=limit)


def test_a_cache_changes_nothing(model):
    greedy = {"max_new_tokens": 10, "do_sample": False}
    alone = [model.generate(ids, **greedy)[0] for ids in IDS[:, :5]]
    np.testing.assert_array_equal(model.generate(IDS[:, :5], **greedy), alone)


def test_what_is_kept_in_fewer_bits_is_not_trained(model):
    assert model.num_parameters(trainable=True) == 0
    name = next(n for n, array in model.parameters.items() if isinstance(array, Weight))
    with pytest.raises(ValueError, match=f"{name} is kept in fewer bits, which are not trained"):
        model.unfreeze(name)
    loss, gradients = model.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    assert np.isfinite(loss)
    assert len(gradients) == 0
    model.unfreeze()  # what can be
    assert 0 < model.num_parameters(trainable=True) < 4000
    assert name not in model.trained


def test_an_adapter_learns_beside_them(directory, dtype, monkeypatch):
    """Its gradients are those beside the matrix that is multiplied by."""
    monkeypatch.setattr(KINDS[dtype], "multiplier", classmethod(lambda cls: None))
    model = formats.load_model(directory, dtype=dtype)
    rounded = dequantised(model)
    for each in (model, rounded):
        each.add_adapter(LoRAConfig(4, 8, "all-linear"), seed=3)
        for array in each.adapter.parameters.values():
            array += np.random.default_rng(5).normal(0, 0.05, array.shape).astype(np.float32)
    loss, gradients = model.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    expected_loss, expected = rounded.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(gradients) == set(expected) == set(model.adapter.parameters)
    for name in gradients:
        assert_close(gradients[name], expected[name], name)
    # … and by finite differences, along the gradient.
    flat = model.adapter.parameters.flat
    start, norm = flat.copy(), np.linalg.norm(gradients.flat)
    losses = []
    for step in (1e-2, -1e-2):
        flat[:] = start + step * gradients.flat / norm
        losses.append(model.loss(IDS[:, :-1], IDS[:, 1:]))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(norm, rel=1e-2)
    flat[:] = start
    with pytest.raises(ValueError, match="kept in fewer bits, which nothing is merged into"):
        model.merge_adapter()


def test_an_adapter_learns_with_onednn_too(model, dtype):
    weights = [array for array in model.parameters.values() if isinstance(array, Weight)]
    if not any((w if isinstance(w, FewerBits) else w.T).library for w in weights):
        pytest.skip("oneDNN is not installed")
    rounded = dequantised(model)
    for each in (model, rounded):
        each.add_adapter(LoRAConfig(4, 8, "all-linear"), seed=3)
    _, gradients = model.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    _, expected = rounded.loss_and_grads(IDS[:, :-1], IDS[:, 1:])
    limit = 0.05 if dtype == "bfloat16" else 2e-3
    difference = np.linalg.norm(gradients.flat - expected.flat)
    assert difference < limit * np.linalg.norm(expected.flat)


def test_copies_compute_the_same(model):
    expected = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other(IDS), expected)


def test_queries_keys_and_values_are_one_product(model):
    if isinstance(model, GPT):
        return
    qkv = model.blocks[0].attention.qkv.weight
    assert isinstance(qkv.T, FewerBits)
    name = "layers.0.self_attn.k_proj.weight"
    assert np.shares_memory(qkv.T.data, model.parameters[name].data)


def test_one_can_look_inside(dtype):
    model, tokenizer = numgpt.load("shakespeare", dtype=dtype)
    ids = tokenizer.encode("To be, or not")
    parts = insight.direct_logit_attribution(model, ids, 3)
    assert all(np.isfinite(part).all() for part in parts.values())
    page = insight.page(model, tokenizer, "To be", layers=(0, 1))
    assert page.data["checks"]


def test_an_adapter_goes_from_one_to_the_other(model, directory, dtype, tmp_path, recwarn):
    model.add_adapter(LoRAConfig(2, 4))
    model.save_adapter(tmp_path / "adapter")
    for other in ("float32", dtype):
        formats.load_adapter(formats.load_model(directory, dtype=other), tmp_path / "adapter")
    assert not [str(warning.message) for warning in recwarn if "weights" in str(warning.message)]


def test_the_model_that_ships_says_the_same(dtype):
    """bfloat16's text is float32's; of int8 the first words are."""
    model, tokenizer = numgpt.load("shakespeare", dtype=dtype)
    whole, _ = numgpt.load("shakespeare")
    prompt = tokenizer.encode("To be, or not to be")
    text, expected = (
        tokenizer.decode(each.generate(prompt, max_new_tokens=20, do_sample=False)[0])
        for each in (model, whole)
    )
    assert text[:40] == expected[:40]
