"""Hooks: what they see, what a replacement does, forward and backward."""

import numpy as np
import pytest
from models.references import batch, small_model
from models.test_gradients import along, cut, numerical
from support import assert_close

from numgpt.layers import attention_pattern, pattern_backward, pattern_forward, scores_backward
from numgpt.layers.attention import attention_backward, attention_forward
from numgpt.models import Gradients

FAMILIES = ["untied", "default", "relu", "llama_grouped", "llama_biases", "llama_qwen3"]
WITH_DROPOUT = {"untied": 0.4, "llama_grouped": 0.4}


@pytest.fixture(params=FAMILIES)
def model(request):
    model = small_model(request.param, np.float64)
    model.config.set_dropout(WITH_DROPOUT.get(request.param, 0.0))
    return model


def gradients_of(model, **options):
    """Loss and gradients, with the same dropout each time."""
    ids, targets = batch(model.config, (2, 7))
    return model.loss_and_grads(ids, targets, np.random.default_rng(3), **options)


def kept(model):
    """Activations, by name."""
    activations = {}
    gradients_of(model, hooks={name: keeper(activations, name) for name in model.hook_names})
    return activations


def keeper(store, name, copy=True):
    def keep(array):
        store[name] = array.copy() if copy else array

    return keep


@pytest.mark.parametrize(
    ("name", "of_heads", "of_mlp"),
    [
        ("default", "q k", "pre post"),
        ("llama_grouped", "q rot_q k rot_k", "pre pre_linear post"),
        ("llama_qwen3", "q q_normed rot_q k k_normed rot_k", "pre pre_linear post"),
    ],
)
def test_where_hooks_are(name, of_heads, of_mlp):
    model = small_model(name)
    of_block = ["hook_resid_pre", "ln1.hook_normalized"]
    of_block += [f"attn.hook_{x}" for x in (*of_heads.split(), "v", "pattern", "z")]
    of_block += ["hook_attn_out", "hook_resid_mid", "ln2.hook_normalized"]
    of_block += [f"mlp.hook_{x}" for x in of_mlp.split()]
    of_block += ["hook_mlp_out", "hook_resid_post"]
    blocks = [f"blocks.{layer}.{x}" for layer in range(2) for x in of_block]
    before = ["hook_embed", "hook_pos_embed"] if name == "default" else ["hook_embed"]
    assert model.hook_names == [*before, *blocks, "ln_final.hook_normalized"]


def test_the_names_and_shapes_that_hooks_see(model):
    seen = []
    hooks = {name: lambda x, name=name: seen.append((name, x.shape)) for name in model.hook_names}
    ids, _ = batch(model.config, (2, 7))
    model.run_with_hooks(ids, hooks)
    assert [name for name, _ in seen] == model.hook_names
    config, shapes = model.config, dict(seen)
    heads, size = config.heads, config.head_size
    for layer in range(config.layers):
        of_block = f"blocks.{layer}."
        assert shapes[of_block + "attn.hook_q"] == (2, 7, heads, size)
        assert shapes[of_block + "attn.hook_v"] == (2, 7, config.kv_heads, size)
        assert shapes[of_block + "attn.hook_pattern"] == (2, heads, 7, 7)
        assert shapes[of_block + "hook_resid_post"] == (2, 7, config.width)
    backward = []
    hooks = {name: lambda x, n=name: backward.append(n) for name in model.hook_names}
    gradients_of(model, backward_hooks=hooks)
    assert sorted(backward) == sorted(model.hook_names)
    assert backward[0] == "ln_final.hook_normalized"


@pytest.mark.parametrize("answer", [lambda x: None, lambda x: x], ids=["None", "itself"])
def test_who_only_looks_changes_nothing(model, answer, one_thread):
    ids, _ = batch(model.config, (2, 7))
    hooks = dict.fromkeys(model.hook_names, answer)
    np.testing.assert_array_equal(model.run_with_hooks(ids, hooks), model(ids))
    loss, gradients = gradients_of(model)
    for options in ({"hooks": hooks}, {"backward_hooks": hooks}, {"hooks": {}}):
        hooked_loss, hooked = gradients_of(model, **options)
        assert hooked_loss == loss
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(hooked[name], gradient, name)


def test_an_equal_copy_changes_nothing(model, one_thread):
    loss, gradients = gradients_of(model)
    for name in model.hook_names:
        copies = {name: lambda x: x.copy()}
        for options in ({"hooks": copies}, {"backward_hooks": copies}):
            hooked_loss, hooked = gradients_of(model, **options)
            assert hooked_loss == pytest.approx(loss, rel=1e-12)
            for parameter, gradient in gradients.items():
                assert_close(hooked[parameter], gradient, f"{name}: {parameter}")


def fixed(array):
    return lambda _: array


def others(model, activations):
    """Of each activation another value; a pattern keeps the causal mask."""
    rng = np.random.default_rng(7)
    for name, activation in activations.items():
        other = activation + 0.1 * rng.normal(size=activation.shape)
        yield name, np.abs(other) * (activation > 0) if "pattern" in name else other


def test_gradients_are_those_of_the_loss_by_the_activation(model):
    """∂loss/∂a along a random direction, where a is what was computed, and where it is replaced."""
    rng, step = np.random.default_rng(5), 1e-6
    activations = kept(model)
    for values in (activations.items(), others(model, activations)):
        for name, a in values:
            seen = {}
            gradients_of(model, hooks={name: fixed(a)}, backward_hooks={name: keeper(seen, name)})
            direction = rng.normal(size=a.shape) * (a != 0)
            up, _ = gradients_of(model, hooks={name: fixed(a + step * direction)})
            down, _ = gradients_of(model, hooks={name: fixed(a - step * direction)})
            expected = (seen[name] * direction).sum()
            assert (up - down) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-9), name


def test_a_gradient_put_to_zero_is_an_activation_held_fast(model):
    """∂loss/∂parameters with a replaced by a constant, against a backward that hands on nothing
    from there: so also what reads the replaced value has its gradients by it."""
    activations = kept(model)
    for name, other in others(model, activations):
        hooks = {name: fixed(other)}
        _, gradients = gradients_of(model, hooks=hooks, backward_hooks={name: np.zeros_like})
        # In steps so small that no ReLU has its kink in between.
        slope, direction = numerical(
            model, lambda hooks=hooks: gradients_of(model, hooks=hooks)[0], step=1e-7
        )
        assert slope == pytest.approx(along(gradients, direction), rel=1e-5), name


def replaced(model, name, value):
    """Gradients, by parameters and by activations, and the activations, with one replaced."""
    activations, gradients = {}, {}
    hooks = {n: keeper(activations, n, copy=n != name) for n in model.hook_names}
    _, of_parameters = gradients_of(
        model,
        hooks=hooks | {name: fixed(value)},
        backward_hooks={n: keeper(gradients, n) for n in model.hook_names},
    )
    return of_parameters, gradients, activations


def straight_through(computed, value):
    """The replacement going forward; going back, the function that computed what it replaces."""
    return computed + (value - computed).detach()


@pytest.mark.live("torch", "transformers")
def test_a_replaced_pattern_is_pytorchs_straight_through(model):
    """What follows sees the replacement: dv = replacedᵀ dz. The softmax takes its derivative at the
    pattern that it computed."""
    import torch

    model.config.set_dropout(0.0)
    name = "blocks.0.attn.hook_pattern"
    pattern = kept(model)[name][..., ::-1].copy()  # no softmax of these scores
    _, gradients, seen = replaced(model, name, pattern)
    turned = "rot_" if model.blocks[0].attention.rotates else ""
    names = [f"blocks.0.attn.hook_{part}" for part in (f"{turned}q", f"{turned}k", "v")]
    q, k, v = (torch.tensor(seen[n], requires_grad=True) for n in names)
    group = q.shape[2] // k.shape[2]
    k_of_heads, v_of_heads = (x.repeat_interleave(group, dim=2) for x in (k, v))
    s = torch.einsum("bthd,bshd->bhts", q, k_of_heads) * model.blocks[0].attention.scale
    p = torch.softmax(s.masked_fill(torch.ones(s.shape[2:]).triu(1).bool(), -torch.inf), dim=-1)
    p = straight_through(p, torch.tensor(pattern))
    p.retain_grad()
    z = torch.einsum("bhts,bshd->bthd", p, v_of_heads)
    assert_close(seen["blocks.0.attn.hook_z"], z.detach().numpy())
    z.backward(torch.tensor(gradients["blocks.0.attn.hook_z"]))
    assert_close(gradients[name], p.grad.numpy())
    for n, x in zip(names, (q, k, v), strict=True):
        assert_close(gradients[n], x.grad.numpy(), n)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("norm", ["ln1", "ln2"])
def test_a_replaced_normalised_input_is_pytorchs_straight_through(model, norm):
    """What follows sees the replacement: dweight = Σ dy · replaced. The norm takes its derivative
    at the x̂ that it computed."""
    import torch

    hook, stream = f"blocks.0.{norm}.hook_normalized", "resid_pre" if norm == "ln1" else "resid_mid"
    past = "resid_mid" if norm == "ln1" else "resid_post"
    value = np.random.default_rng(3).normal(size=kept(model)[hook].shape)
    of_parameters, gradients, seen = replaced(model, hook, value)
    module = model.blocks[0].norm_1 if norm == "ln1" else model.blocks[0].norm_2
    x = torch.tensor(seen[f"blocks.0.hook_{stream}"], requires_grad=True)
    centred = x if module.bias is None else x - x.mean(dim=-1, keepdim=True)
    x_hat = centred / (centred.square().mean(dim=-1, keepdim=True) + module.eps).sqrt()
    weight = torch.tensor(module.weight, requires_grad=True)
    y = weight * straight_through(x_hat, torch.tensor(value))
    y.backward(torch.tensor(gradients[hook] / module.weight))  # gradients[hook] is dy · weight
    dx = gradients[f"blocks.0.hook_{stream}"] - gradients[f"blocks.0.hook_{past}"]
    assert_close(dx, x.grad.numpy())
    assert_close(of_parameters[module.parameter_names[0]], weight.grad.numpy())


def test_a_replaced_pattern_leaves_the_softmaxs_derivative(model):
    """dv is by the replacement; ds = p (dp - Σ dp p), and so dq and dk, by what was computed."""
    model.config.set_dropout(0.0)
    name = "blocks.0.attn.hook_pattern"
    p = kept(model)[name]
    _, gradients, seen = replaced(model, name, p[..., ::-1].copy())  # no softmax of these scores
    turned = "rot_" if model.blocks[0].attention.rotates else ""
    q_name, k_name, v_name, z_name = (
        f"blocks.0.attn.hook_{x}" for x in (f"{turned}q", f"{turned}k", "v", "z")
    )
    q, k, dz, dp = seen[q_name], seen[k_name], gradients[z_name], gradients[name]
    group = q.shape[2] // k.shape[2]

    def by_kv_head(x):
        return x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(axis=3)

    ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * model.blocks[0].attention.scale
    assert_close(gradients[v_name], by_kv_head(np.einsum("bhts,bthd->bshd", p[..., ::-1], dz)))
    assert_close(gradients[q_name], np.einsum("bhts,bshd->bthd", ds, np.repeat(k, group, axis=2)))
    assert_close(gradients[k_name], by_kv_head(np.einsum("bhts,bthd->bshd", ds, q)))


def test_a_replaced_normalised_input_leaves_the_norms_derivative(model):
    hook = "blocks.1.ln2.hook_normalized"
    value = np.random.default_rng(3).normal(size=kept(model)[hook].shape)
    _, gradients, seen = replaced(model, hook, value)
    norm, width = model.blocks[1].norm_2, value.shape[-1]
    dy = (gradients[hook] / norm.weight).reshape(-1, width)
    _, computed = norm.forward(seen["blocks.1.hook_resid_mid"].reshape(-1, width))
    dx = norm.backward(dy, computed, Gradients({}, dy.dtype)).reshape(value.shape)
    past = gradients["blocks.1.hook_resid_post"]
    assert_close(gradients["blocks.1.hook_resid_mid"], past + dx)


def test_what_was_kept_or_returned_stays_as_it_is(model):
    held, copies = {}, {}

    def hold(name, store):
        def hook(array):
            answer = array + 0.0
            store[name, "seen"], store[name, "returned"] = array, answer
            copies[id(store), name] = array.copy()
            return answer

        return hook

    forward, backward = {}, {}
    gradients_of(
        model,
        hooks={name: hold(name, forward) for name in model.hook_names},
        backward_hooks={name: hold(name, backward) for name in model.hook_names},
    )
    held = {id(forward): forward, id(backward): backward}
    for (store, name), copy in copies.items():
        np.testing.assert_array_equal(held[store][name, "seen"], copy, name)
        np.testing.assert_array_equal(held[store][name, "returned"], copy, name)


def test_the_batch_is_not_cut(monkeypatch):
    cut(2, monkeypatch)
    model, shapes = small_model("default"), []
    gradients_of(model, hooks={"hook_embed": lambda x: shapes.append(x.shape)})
    assert shapes == [(2, 7, 16)]


def test_run_with_cache(model):
    ids, _ = batch(model.config, (2, 7))
    logits, activations = model.run_with_cache(ids)
    np.testing.assert_array_equal(logits, model(ids))
    assert list(activations) == model.hook_names
    z = "blocks.1.attn.hook_z"
    for names_filter, names in (
        (z, [z]),
        ([z, "hook_embed"], ["hook_embed", z]),
        (lambda name: name.endswith("hook_z"), ["blocks.0.attn.hook_z", z]),
    ):
        _, some = model.run_with_cache(ids, names_filter)
        assert list(some) == names
        np.testing.assert_array_equal(some[z], activations[z])


def test_frozen_blocks_below_are_not_gone_back_through(model):
    _, full = gradients_of(model)
    model.freeze()
    model.unfreeze(f"{model.blocks[1].name}.*")
    _, gradients = gradients_of(model)
    assert set(gradients) == {n for n in full if n.startswith(f"{model.blocks[1].name}.")}
    for name, gradient in gradients.items():
        assert_close(gradient, full[name], name)
    reached = []
    model.blocks[0].backward = lambda *arguments: reached.append(arguments) or arguments[0]
    gradients_of(model)
    assert not reached
    gradients_of(model, backward_hooks={})
    assert not reached
    gradients_of(model, backward_hooks={"hook_embed": lambda x: None})
    assert reached


@pytest.mark.parametrize("kind", ["hooks", "backward_hooks"])
def test_wrong_hooks_are_told(kind):
    model = small_model("default")
    for function, message in (
        (lambda x: x[:1], r"returned an array of shape \(1, 7, 16\), float32: expected None, or"),
        (lambda x: x.astype(np.float64), r"\(2, 7, 16\), float64: expected"),
        (lambda x: 5, "returned 5: expected None"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            gradients_of(model, **{kind: {"blocks.1.hook_resid_mid": function}})
        assert "blocks.1.hook_resid_mid" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"^{kind}: no hook is named 'blocks.1.hook_z'.*attn"):
        gradients_of(model, **{kind: {"blocks.1.hook_z": lambda x: None}})
    with pytest.raises(TypeError, match=f"{kind} are 5: expected functions by name"):
        gradients_of(model, **{kind: 5})
    with pytest.raises(TypeError, match=f"{kind}: under hook_embed is 5: expected a function"):
        gradients_of(model, **{kind: {"hook_embed": 5}})


def test_what_is_seen_is_not_written_to():
    model = small_model("default")

    def clear(x):
        x[:] = 0

    with pytest.raises(ValueError, match="read-only"):
        model.run_with_hooks([1, 2], {"blocks.0.hook_resid_mid": clear})
    with pytest.raises(ValueError, match="no hook is named 'z'"):
        model.run_with_cache([1, 2], names_filter="z")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_the_pattern_is_attentions(dropout, kv_heads, masked):
    rng = np.random.default_rng(8)
    q, dy = rng.normal(size=(2, 2, 4, 5, 6))
    k, v = rng.normal(size=(2, 2, kv_heads, 7, 6))
    mask = np.arange(7) >= [[0], [3]] if masked else None
    y, cache = attention_forward(q, k, v, None, mask, dropout, np.random.default_rng(9))
    p = attention_pattern(cache)
    if not masked:
        assert_close(p.sum(axis=-1), np.ones(p.shape[:-1]))
    assert_close(pattern_forward(p, cache), y)
    dp, dv = pattern_backward(dy, p, cache)
    expected = attention_backward(dy, cache)
    for actual, gradient in zip((*scores_backward(dp, p, cache), dv), expected, strict=True):
        assert_close(actual, gradient)


def test_hidden_states_and_attentions():
    model = small_model("default")
    states, patterns = model.hidden_states([1, 2, 3]), model.attentions([1, 2, 3])
    assert [state.shape for state in states] == [(1, 3, 16)] * 3
    np.testing.assert_array_equal(model.unembedding.logits(states[-1][0]), model([1, 2, 3])[0])
    np.testing.assert_allclose(
        states[0][0, 1], (model.parameters["wte"][2] + model.parameters["wpe"][1])
    )
    for pattern in patterns:
        assert pattern.shape == (1, 2, 3, 3)
        np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-6)
        np.testing.assert_array_equal(np.triu(pattern[0, 0], 1), 0)
