"""What the common cases leave out: dropout, masks, scale, extreme logits, and work cut into many
blocks."""

import numpy as np
import pytest
from layers.cases import CASES, draw_attention, golden_inputs
from layers.test_layers import EVERY_SHAPE, test_equals_recorded_pytorch
from support import assert_close

from numgpt import layers
from numgpt.layers import attention_tiles, cross_entropy
from numgpt.layers.dropout import dropout_mask
from numgpt.runtime import blocks, products


def directional(function, arrays, gradients):
    """Numerical derivative along a random direction in all arrays, and what the gradients say."""
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=array.shape) for array in arrays]
    step = 1e-6
    ahead, behind = (
        function(*(a + sign * step * d for a, d in zip(arrays, directions, strict=True)))
        for sign in (1, -1)
    )
    exact = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    return (ahead - behind) / (2 * step), exact


@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_many_small_blocks_give_the_same(name, shape, monkeypatch):
    """Chunks of the loss, blocks of rows, panels of products and tiles, all as small as can be."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64)
    monkeypatch.setattr(blocks, "SMALL", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 256)
    monkeypatch.setattr(products, "LARGE_WEIGHTS_BYTES", 0)
    monkeypatch.setattr(products, "PANEL_BYTES", 64)
    monkeypatch.setattr(attention_tiles, "FEWEST_QUERIES", 3)
    monkeypatch.setattr(attention_tiles, "MOST_QUERIES", 3)
    monkeypatch.setattr(attention_tiles, "TILE_ELEMENTS", 16)
    for dtype in (np.float32, np.float64):
        test_equals_recorded_pytorch(name, shape, dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99999])
def test_dropout_keeps_the_mean_and_reuses_its_mask(p):
    levels = 1 << 16
    p_drawn = round(p * levels) / levels
    x = np.random.default_rng(0).normal(size=(600, 2000)) + 3
    y, cache = layers.dropout_forward(x, p, np.random.default_rng(1))
    kept = y != 0
    deviation = np.sqrt(p_drawn * (1 - p_drawn) / x.size)
    assert kept.mean() == pytest.approx(1 - p_drawn, abs=5 * deviation)
    assert y.mean() / x.mean() == pytest.approx(1, abs=6 * deviation / (1 - p_drawn))
    assert_close(y, x * kept / (1 - p_drawn))
    dy = np.random.default_rng(2).normal(size=x.shape)
    assert_close(layers.dropout_backward(dy, cache), dy * kept / (1 - p_drawn))
    again, _ = layers.dropout_forward(x, p, np.random.default_rng(1))
    np.testing.assert_array_equal(y, again)
    other, _ = layers.dropout_forward(x, p, np.random.default_rng(2))
    assert not np.array_equal(y, other)


def test_without_a_generator_or_probability_dropout_is_nothing():
    x = np.ones((2, 3))
    for arguments in ((0.5, None), (0.0, np.random.default_rng(0))):
        y, cache = layers.dropout_forward(x, *arguments)
        assert y is x
        assert layers.dropout_backward(x, cache) is x


SHAPE = (2, 3, 7, 5)  # B, H, T, D


def drawn(past=0):
    *sizes, size = SHAPE
    return draw_attention(np.random.default_rng(3), *sizes, past, size).values()


KEY_MASK = np.arange(7 + 2) >= np.array([[3], [0]])  # the first row has three places of padding
OPTIONS = {
    "dropout": {"dropout": 0.3},
    "padding": {"key_mask": KEY_MASK},
    "scale": {"scale": 0.9},
    "all": {"dropout": 0.4, "key_mask": KEY_MASK, "scale": -0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_options_have_the_numerical_derivative(name):
    q, k, v, dy = drawn(past=2)

    def loss(q, k, v):
        y, _ = layers.attention_forward(q, k, v, rng=np.random.default_rng(5), **OPTIONS[name])
        return (y * dy).sum()

    _, cache = layers.attention_forward(q, k, v, rng=np.random.default_rng(5), **OPTIONS[name])
    numerical, exact = directional(loss, (q, k, v), layers.attention_backward(dy, cache))
    assert numerical == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("kv_heads", [3, 1])
def test_a_query_alone_is_the_last_of_many(kv_heads):
    q, k, v, dy = drawn(past=2)
    k, v, options = k[:, :kv_heads], v[:, :kv_heads], {"key_mask": KEY_MASK, "scale": 0.9}
    dy[:, :, :-1] = 0
    y, cache = layers.attention_forward(q, k, v, **options)
    y_alone, alone = layers.attention_forward(q[:, :, -1:], k, v, **options)
    assert_close(y_alone, y[:, :, -1:])
    (dq, *of_keys), last = layers.attention_backward(dy, cache), dy[:, :, -1:]
    for a, b in zip(layers.attention_backward(last, alone), (dq[:, :, -1:], *of_keys), strict=True):
        assert_close(a, b)


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", ["padding", "scale"])
def test_attention_options_equal_pytorch(name):
    import torch

    q, k, v, dy = drawn(past=2)
    y, cache = layers.attention_forward(q, k, v, **OPTIONS[name])
    ours = (y, *layers.attention_backward(dy, cache))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    mask = (
        torch.ones(7, 9).tril(2).bool()
        & torch.tensor(OPTIONS[name].get("key_mask", KEY_MASK | True))[:, None, None]
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=mask, scale=OPTIONS[name].get("scale")
    )
    expected.backward(torch.tensor(dy))
    theirs = (expected.detach(), *(tensor.grad for tensor in tensors))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b.numpy(), name)


@pytest.mark.parametrize("p", [0.25, 0.6])
def test_attentions_dropout_is_the_textbooks(p):
    q, k, v, _ = drawn(past=2)
    y, _ = layers.attention_forward(q, k, v, dropout=p, rng=np.random.default_rng(5))
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    mask, scale = dropout_mask((batch, heads, keys, 1, queries), p, np.random.default_rng(5))
    m = scale * mask[:, :, :, 0].swapaxes(2, 3)  # (B, H, T, S)
    s = q @ k.swapaxes(2, 3) / np.sqrt(size)
    s[..., ~np.tri(queries, keys, keys - queries, dtype=bool)] = -np.inf
    assert_close(y, (layers.softmax_forward(s)[0] * m) @ v)
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4)


def test_padding_is_as_if_it_were_not_there():
    q, k, v, dy = drawn()
    mask = np.arange(7) >= np.array([[4], [4]])
    y, cache = layers.attention_forward(q, k, v, key_mask=mask)
    dq, dk, dv = layers.attention_backward(dy, cache)
    short = [a[:, :, 4:] for a in (q, k, v, dy)]
    y_short, cache_short = layers.attention_forward(*short[:3])
    assert_close(y[:, :, 4:], y_short)
    assert not y[:, :, :4].any()  # these see nothing at all
    for whole, part in zip(
        (dq, dk, dv), layers.attention_backward(short[3], cache_short), strict=True
    ):
        assert_close(whole[:, :, 4:], part)
        assert not whole[:, :, :4].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_log_probs_are_safe_at_extreme_logits(offset, dtype):
    logits = np.array([[offset, 0, 1], [0, offset, 0], [offset, offset, offset]], dtype)
    exact = [1e4, 0, np.log(3)] if offset > 0 else [np.log(1 + np.e), 1e4 + np.log(2), np.log(3)]
    targets, identity = np.array([1, 1, 0]), np.eye(3, dtype=dtype)
    loss, dlogits, _ = layers.linear_cross_entropy(logits, identity, targets)
    assert loss == pytest.approx(np.mean(exact), rel=1e-6)
    assert np.isfinite(dlogits).all()
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-6)
    logp, cache = layers.linear_log_probs_forward(logits, identity, targets)
    np.testing.assert_allclose(-logp, exact, rtol=1e-6, atol=2e-3 if dtype == np.float32 else 1e-11)
    again, _ = layers.linear_log_probs_backward(np.full(3, -1 / 3, dtype), cache)
    np.testing.assert_allclose(again, dlogits, atol=1e-3 if dtype == np.float32 else 1e-11)


def test_without_any_target_all_is_zero():
    x, weight, targets = np.ones((2, 3)), np.ones((5, 3)), np.array([-100, -100])
    loss, dx, dweight = layers.linear_cross_entropy(x, weight, targets)
    assert loss == 0
    assert not dx.any()
    assert not dweight.any()
    logp, cache = layers.linear_log_probs_forward(x, weight, targets)
    assert not logp.any()
    for gradient in layers.linear_log_probs_backward(np.ones(2), cache):
        assert not gradient.any()


@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 26])
def test_chunks_of_rows_give_what_all_at_once_gives(monkeypatch, chunk_bytes):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", chunk_bytes)
    inputs = golden_inputs("linear_log_probs", (20, 257, 16), np.float64)
    results = CASES["linear_log_probs"].ours(inputs)
    logits = inputs["x"] @ inputs["weight"].T
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.flatnonzero(inputs["targets"] != -100)
    assert_close(results["y"][rows], log_p[rows, inputs["targets"][rows]])
    dlogits = np.zeros_like(logits)
    dlogits[rows] = -np.exp(log_p[rows]) * inputs["dy"][rows, None]
    dlogits[rows, inputs["targets"][rows]] += inputs["dy"][rows]
    assert_close(results["dx"], dlogits @ inputs["weight"])
    assert_close(results["dweight"], dlogits.T @ inputs["x"])


def test_lora_takes_any_leading_axes_as_rows():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 3, 4, 5))
    a, b = rng.normal(size=(2, 6)), rng.normal(size=(5, 2))
    y, cache = layers.lora_forward(x, a, b, 0.75)
    assert_close(y, 0.75 * x @ (b @ a).T)
    dx, da, db = layers.lora_backward(dy, cache)
    assert_close(dx, 0.75 * dy @ b @ a)
    dy_rows, x_rows = dy.reshape(-1, 5), x.reshape(-1, 6)
    assert_close(da, 0.75 * (dy_rows @ b).T @ x_rows)
    assert_close(db, 0.75 * dy_rows.T @ (x_rows @ a.T))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((2, 6), (5, 3), r"A has shape \(2, 6\), B \(5, 3\): expected \(r, I\) and \(O, r\)"),
        ((3, 6), (5, 2), r"A has shape \(3, 6\), B \(5, 2\): expected \(r, I\) and \(O, r\)"),
        ((6,), (5, 2), r"A has shape \(6,\): expected \(r, I\)"),
        ((2, 6), (5, 2, 1), r"B has shape \(5, 2, 1\): expected \(O, r\)"),
    ],
)
def test_lora_says_which_ranks_differ(a, b, message):
    with pytest.raises(ValueError, match=message):
        layers.lora_forward(np.ones((4, 6)), np.ones(a), np.ones(b), 1.0)


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan])
def test_a_temperature_is_above_0(temperature):
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    with pytest.raises(ValueError, match=f"temperature={temperature}: expected a number above 0"):
        layers.linear_log_probs_forward(x, weight, np.array([0, 1]), temperature)
