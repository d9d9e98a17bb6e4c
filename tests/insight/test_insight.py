"""Lens, attribution, heads, patching and saliency: sums that must hold, and finite differences."""

import html
import re

import numpy as np
import pytest
from models.references import small_model
from models.test_lora import adapted

from numgpt import insight
from numgpt.insight import attribution
from numgpt.layers import softmax_forward
from numgpt.tokenizer import CharTokenizer

NAMES = ["default", "untied", "llama_grouped", "llama_qwen2", "llama_qwen3"]
IDS = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(params=[*NAMES, "adapter"])
def model(request):
    if request.param != "adapter":
        return small_model(request.param, dtype=np.float64)
    return adapted("default", r=2)


# --- the lens ---


def test_the_lens_ends_at_the_models_own_prediction(model):
    lens = insight.logit_lens(model, [IDS, IDS[::-1]])
    layers = len(model.blocks)
    assert lens.names[0] == "blocks.0.hook_resid_pre"
    assert lens.names[-1] == f"blocks.{layers - 1}.hook_resid_post"
    assert lens.log_probs.shape == (layers + 1, 2, 7, model.config.vocab_size)
    expected = softmax_forward(model([IDS, IDS[::-1]]))[0]
    np.testing.assert_allclose(lens.probabilities[-1], expected, rtol=1e-10)
    np.testing.assert_allclose(lens.probabilities.sum(axis=-1), 1, rtol=1e-12)
    assert not lens.kl[-1].any()
    assert (lens.kl[:-1] > 0).all()
    assert not lens.ranks[-1].any()
    np.testing.assert_array_equal(lens.targets, expected.argmax(axis=-1))


def test_the_lens_by_hand():
    model = small_model("default", dtype=np.float64)
    lens = insight.logit_lens(model, IDS, targets=[5] * 7)
    streams = model.run_with_cache(IDS, "blocks.1.hook_resid_pre")[1]
    x = streams["blocks.1.hook_resid_pre"][0]
    x_hat = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    weights = model.parameters
    z = (weights["ln_f.weight"] * x_hat + weights["ln_f.bias"]) @ weights["wte"].T
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(lens.probabilities[1, 0], p, rtol=1e-9)
    q = lens.probabilities[-1, 0]
    np.testing.assert_allclose(lens.kl[1, 0], (p * np.log(p / q)).sum(1), rtol=1e-8)
    np.testing.assert_array_equal(lens.ranks[1, 0], (p > p[:, 5:6]).sum(1))


def test_a_notebook_shows_tables(model):
    letters = [chr(0x4E00 + n) for n in range(model.config.vocab_size - 1)]
    tokenizer = CharTokenizer([*letters, "<"])
    lens = insight.logit_lens(model, IDS, tokenizer=tokenizer)
    shown = lens._repr_html_()
    rows = re.findall("<tr>(.*?)</tr>", shown)
    assert len(rows) == len(model.blocks) + 2
    assert re.findall("<th>(.*?)</th>", rows[0])[1:] == [
        html.escape(tokenizer.decode([id])) for id in IDS
    ]
    predicted = [html.escape(tokenizer.decode([int(id)])) for id in lens.targets[0]]
    assert re.findall("<td.*?>(.*?)</td>", rows[1]) == [
        f"block {len(model.blocks) - 1}",
        *predicted,
    ]
    report = insight.per_token(model, IDS, top=2, tokenizer=tokenizer)
    rows = re.findall("<tr>(.*?)</tr>", report._repr_html_())
    cells = [re.findall("<td.*?>(.*?)</td>", row) for row in rows[1:]]
    assert [row[0] for row in cells] == [html.escape(tokenizer.decode([id])) for id in IDS[1:]]
    assert [row[1] for row in cells] == [f"{loss:.3f}" for loss in report.loss]
    assert [row[3] for row in cells] == [str(rank + 1) for rank in report.rank]
    assert "[" in insight.per_token(model, IDS)._repr_html_()  # ids, without a tokenizer
    assert "[5]" in insight.logit_lens(model, [5, 1])._repr_html_()


# --- attribution ---


@pytest.mark.parametrize(("against", "position"), [(None, -1), (7, -1), (None, 2), (7, 0)])
def test_the_parts_add_up_to_the_logit(model, against, position):
    parts = insight.direct_logit_attribution(model, IDS, 11, against, position)
    logits = model(IDS)[0, position]
    expected = logits[11] - (0 if against is None else logits[against])
    assert sum(part.sum() for part in parts.values()) == pytest.approx(expected, rel=1e-9)
    layers, heads = model.config.layers, model.config.heads
    assert parts["heads"].shape == (layers, heads)
    for name in ("attention_biases", "mlps", "mlp_biases"):
        assert parts[name].shape == (layers,)
    assert ("pos_embed" in parts) == ("hook_pos_embed" in model.hook_names)


def test_the_parts_add_up_in_float32():
    for name in NAMES:
        model = small_model(name)
        parts = insight.direct_logit_attribution(model, IDS, 11)
        logit = float(model(IDS)[0, -1, 11])
        assert abs(sum(part.sum() for part in parts.values()) - logit) < 1e-4


def test_a_heads_part_is_what_the_logit_loses_without_it(model):
    """In the last layer, with the norm's scale held fast, for nothing comes after it."""
    last, name = model.config.layers - 1, f"blocks.{model.config.layers - 1}"
    outputs = insight.head_outputs(model, IDS, last)
    cache = model.run_with_cache(IDS)[1]
    bias = cache[f"{name}.hook_attn_out"] - outputs.sum(axis=2)
    np.testing.assert_allclose(bias, np.broadcast_to(bias[:, :1], bias.shape), atol=1e-12)
    without = model.run_with_hooks(IDS, insight.ablation_hooks(model, heads=[(last, 1)]))
    stream = cache[f"{name}.hook_attn_out"] - outputs[:, :, 1]
    seen = {}
    hooks = insight.ablation_hooks(model, heads=[(last, 1)])
    hooks[f"{name}.hook_attn_out"] = lambda x: seen.update(x=x.copy())
    np.testing.assert_array_equal(model.run_with_hooks(IDS, hooks), without)
    np.testing.assert_allclose(seen["x"], stream, atol=1e-12)


def test_parts_that_do_not_add_up_are_told(monkeypatch):
    model = small_model("default")
    monkeypatch.setattr(attribution, "bias_of", lambda linear, dtype: np.ones(linear.width, dtype))
    with pytest.raises(ArithmeticError, match="the parts add up to"):
        insight.direct_logit_attribution(model, IDS, 11)


# --- heads ---


def test_scores_of_heads_by_hand():
    model = small_model("default", dtype=np.float64)
    ids = [3, 1, 4, 3, 1, 4, 3]
    scores = insight.attention_head_scores(model, ids)
    for layer, pattern in enumerate(model.attentions(ids)):
        for head, p in enumerate(pattern[0]):
            previous = np.mean([p[i, i - 1] for i in range(1, 7)])
            same = np.mean(
                [sum(p[i, j] for j in range(i) if ids[j] == ids[i]) for i in range(3, 7)]
            )
            after = np.mean(
                [sum(p[i, j + 1] for j in range(i) if ids[j] == ids[i]) for i in range(3, 7)]
            )
            assert scores.previous_token[layer, head] == pytest.approx(previous)
            assert scores.duplicate_token[layer, head] == pytest.approx(same)
            assert scores.induction[layer, head] == pytest.approx(after)
    assert np.isnan(insight.attention_head_scores(model, [1, 2, 3]).induction).all()
    of_repeated = insight.attention_head_scores(model)
    assert of_repeated.induction.shape == (2, 2)
    ids = insight.repeated_tokens(model, 5, batch=2)
    np.testing.assert_array_equal(ids[:, :5], ids[:, 5:])
    assert all(len(set(row)) == 5 for row in ids.tolist())
    assert insight.repeated_tokens(model, 12).shape == (4, 24)


# --- patching and ablation ---


def test_patching_restores_all_or_nothing(model):
    clean, corrupt = [3, 1, 4, 1, 5], [3, 8, 4, 1, 5]
    restored = insight.activation_patching(model, clean, corrupt, 7, against=2)
    assert restored.shape == (model.config.layers, 5)
    np.testing.assert_allclose(restored[0, 1], 1, atol=1e-9)  # where they differ
    np.testing.assert_allclose(restored[0, [0, 2, 3, 4]], 0, atol=1e-9)
    np.testing.assert_allclose(restored[:, 0], 0, atol=1e-9)  # before that
    for kind in ("attn_out", "mlp_out"):
        assert insight.activation_patching(model, clean, corrupt, 7, kind=kind).shape == (
            model.config.layers,
            5,
        )
    heads = insight.activation_patching(model, clean, corrupt, 7, against=2, kind="heads")
    assert heads.shape == (model.config.layers, model.config.heads)
    name = "blocks.1.attn.hook_z"
    z = model.run_with_cache(clean, name)[1][name]

    def patch(value):
        value = value.copy()
        value[:, :, 1] = z[:, :, 1]
        return value

    values = [
        out[0, -1, 7] - out[0, -1, 2]
        for out in (model(clean), model(corrupt), model.run_with_hooks(corrupt, {name: patch}))
    ]
    expected = (values[2] - values[1]) / (values[0] - values[1])
    assert heads[1, 1] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out", "heads"])
def test_attribution_patching_is_the_first_order(model, kind):
    """Of a small difference, it is what patching measures."""
    clean, corrupt = [3, 1, 4, 1, 5], [3, 8, 4, 1, 5]
    embeddings = model.parameters[model.embeddings[0]]
    embeddings[8] = embeddings[1] + 1e-7 * np.random.default_rng(0).normal(size=embeddings.shape[1])
    arguments = (model, clean, corrupt, 7, 2, kind)
    exact = insight.activation_patching(*arguments)
    estimate = insight.attribution_patching(*arguments)
    np.testing.assert_allclose(estimate, exact, rtol=2e-3, atol=2e-4)


def test_ablation(model):
    ids, targets = IDS[:-1], IDS[1:]
    rises = insight.ablation(model, ids, targets)
    assert rises["heads"].shape == (model.config.layers, model.config.heads)
    before = model.loss(ids, targets)

    def without(x):
        x = x.copy()
        x[:, :, 0] = 0
        return x

    loss, _ = model.loss_and_grads(ids, targets, hooks={"blocks.1.attn.hook_z": without})
    assert rises["heads"][1, 0] == pytest.approx(loss - before)
    zeroed = {"blocks.0.hook_mlp_out": lambda x: 0 * x}
    loss, _ = model.loss_and_grads(ids, targets, hooks=zeroed)
    assert rises["mlps"][0] == pytest.approx(loss - before)
    name = "blocks.0.hook_mlp_out"
    mean = model.run_with_cache(IDS, name)[1][name].mean(axis=(0, 1))
    hooks = insight.ablation_hooks(model, mlps=[0], means=IDS)
    np.testing.assert_allclose(
        model.run_with_hooks(ids, hooks),
        model.run_with_hooks(ids, {name: lambda x: np.zeros_like(x) + mean}),
    )
    both = insight.ablation_hooks(model, heads=[(0, 0), (0, 1), (1, 1)], means=IDS)
    assert len(both) == 2


# --- gradients as explanations ---


def test_gradients_at_embeddings_are_finite_differences(model):
    embeddings = model.run_with_cache(IDS, "hook_embed")[1]["hook_embed"]

    def logit(embedded):
        return model.run_with_hooks(IDS, {"hook_embed": lambda _: embedded})[0, 4, 11]

    numeric = np.zeros(embeddings.shape[1:])
    for place in np.ndindex(*numeric.shape):
        step = np.zeros_like(embeddings)
        step[(0, *place)] = 1e-5
        numeric[place] = (logit(embeddings + step) - logit(embeddings - step)) / 2e-5
    np.testing.assert_allclose(
        insight.saliency(model, IDS, 11, position=4), np.linalg.norm(numeric, axis=1), atol=1e-7
    )
    np.testing.assert_allclose(
        insight.input_x_gradient(model, IDS, 11, position=4),
        (numeric * embeddings[0]).sum(1),
        atol=1e-7,
    )
    assert not insight.saliency(model, IDS, 11, position=4)[5:].any()
    at_the_end = insight.saliency(model, IDS[:5], 11)
    np.testing.assert_allclose(at_the_end, insight.saliency(model, IDS, 11, position=4)[:5])
    with_other = insight.input_x_gradient(model, IDS[:5], 11, against=3)
    both = [insight.input_x_gradient(model, IDS[:5], token) for token in (11, 3)]
    np.testing.assert_allclose(with_other, both[0] - both[1], atol=1e-12)


def test_integrated_gradients_are_complete(model):
    found = insight.integrated_gradients(model, IDS, 11, against=3, baseline=0, steps=60)
    logits = [model(ids)[0, -1] for ids in (IDS, [0] * 7)]
    difference = (logits[0][11] - logits[0][3]) - (logits[1][11] - logits[1][3])
    assert found.difference == pytest.approx(difference)
    assert abs(found.error) < 1e-4 * max(1, abs(difference))
    rough = insight.integrated_gradients(model, IDS, 11, against=3, baseline=0, steps=1)
    assert abs(rough.error) > abs(found.error)


def test_gradients_of_one_tokens_loss():
    model = small_model("default", dtype=np.float64)
    found = insight.loss_gradients(model, IDS, 3)
    assert found.keys() == set(model.hook_names)
    targets = np.full(7, -100)
    targets[2] = IDS[3]
    expected = {}
    model.loss_and_grads(
        IDS,
        targets,
        backward_hooks={n: lambda x, n=n: expected.update({n: x.copy()}) for n in model.hook_names},
    )
    for name in model.hook_names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
    # Parameters get none, and what the model has is left alone.
    assert model.trained == model.parameters.layout


def test_a_texts_tokens():
    model = small_model("default", dtype=np.float64)
    report = insight.per_token(model, IDS, top=3)
    p = softmax_forward(model(IDS)[0, :-1])[0]
    np.testing.assert_allclose(report.loss, -np.log(p[np.arange(6), IDS[1:]]))
    assert insight.per_token(model, [1, 2]).loss.shape == (1,)
    assert insight.loss_gradients(model, IDS, 6).keys() == set(model.hook_names)
    assert report.loss.mean() == pytest.approx(model.loss(IDS[:-1], IDS[1:]))
    np.testing.assert_allclose(report.entropy, -(p * np.log(p)).sum(1))
    np.testing.assert_array_equal(report.top_ids, np.argsort(-p, axis=1)[:, :3])
    np.testing.assert_allclose(np.exp(report.top_logprobs), np.sort(p, axis=1)[:, ::-1][:, :3])
    np.testing.assert_array_equal(report.rank, (p > p[np.arange(6), IDS[1:], None]).sum(1))


def test_gradients_with_replaced_activations():
    """What a hook puts in place is what the gradient is taken at."""
    model = small_model("default", dtype=np.float64)
    name, value = "blocks.0.hook_mlp_out", np.full((1, 7, 16), 0.2)

    def dlogits(logits):
        return np.ones_like(logits) * np.arange(logits.shape[-1])

    _, seen, gradients = model.run_with_gradients(IDS, dlogits, name, {name: lambda _: value})
    np.testing.assert_array_equal(seen[name], value)
    step = np.zeros_like(value)
    step[0, 2, 3] = 1e-5

    def f(at):
        return (model.run_with_hooks(IDS, {name: lambda _: at}) * np.arange(37)).sum()

    numeric = (f(value + step) - f(value - step)) / 2e-5
    assert gradients[name][0, 2, 3] == pytest.approx(numeric, rel=1e-6)
    with pytest.raises(ValueError, match="dlogits returned an array of shape"):
        model.run_with_gradients(IDS, lambda logits: logits[0], name)
