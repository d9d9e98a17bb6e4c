"""The layers as somebody tries them out: without arrays for the gradients, with leading axes, with
what they don't take, and under `gradcheck`."""

import numpy as np
import pytest
from support import assert_close

import numgpt
from numgpt import layers
from numgpt.runtime import NOWHERE, Accumulator

RNG = np.random.default_rng(0)
X, DY = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 5))
WEIGHT, BIAS, GAIN = RNG.normal(size=(4, 5)), RNG.normal(size=5), RNG.normal(size=4)


def test_linear_by_itself():
    y, cache = layers.linear_forward(X, WEIGHT, BIAS)
    assert_close(y, X @ WEIGHT + BIAS)
    dx, dweight, dbias = layers.linear_backward(DY, cache)
    assert_close(dx, DY @ WEIGHT.T)
    assert_close(dweight, np.einsum("bti,bto->io", X, DY))
    assert_close(dbias, DY.sum((0, 1)))
    sums = Accumulator.like(dweight), Accumulator.like(dbias)
    layers.linear_backward(DY, cache, *sums)
    _, twice, twice_bias = layers.linear_backward(DY, cache, *sums)
    assert_close(twice, 2 * dweight)
    assert_close(twice_bias, 2 * dbias)
    dx_alone, *_ = layers.linear_backward(DY, cache._replace(x=None), NOWHERE, NOWHERE)
    assert_close(dx_alone, dx)
    _, cache = layers.linear_forward(X, WEIGHT)
    assert layers.linear_backward(DY, cache)[2] is None


def test_embedding_by_itself():
    ids = np.array([[1, 0, 1]])
    y, cache = layers.embedding_forward(ids, WEIGHT)
    assert_close(y, WEIGHT[ids])
    dweight = layers.embedding_backward(np.ones((1, 3, 5)), cache)
    assert_close(dweight, np.array([1.0, 2, 0, 0])[:, None] * np.ones((4, 5)))


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_take_leading_axes_and_make_their_gradients(name):
    forward, backward = getattr(layers, f"{name}_forward"), getattr(layers, f"{name}_backward")
    parameters = (GAIN, BIAS[:4]) if name == "layernorm" else (GAIN,)
    y, cache = forward(X, *parameters)
    flat, flat_cache = forward(X.reshape(6, 4), *parameters)
    assert_close(y, flat.reshape(X.shape))
    dy = RNG.normal(size=X.shape)
    dx, *made = backward(dy, cache)
    given = [Accumulator.like(parameter) for parameter in parameters]
    flat_dx, *same = backward(dy.reshape(6, 4), flat_cache, *given)
    assert_close(dx, flat_dx.reshape(X.shape))
    assert len(made) == len(parameters)
    for ours, theirs, array in zip(made, same, given, strict=True):
        assert theirs is array.out
        assert_close(ours, theirs)


@pytest.mark.parametrize("width", [1, 100, 768, 1600])
def test_a_constant_row_is_normalised_to_zero(width):
    x = np.repeat(RNG.normal(size=(20, 1)).astype(np.float32) * 10, width, axis=1)
    one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
    y, _ = layers.layernorm_forward(x, one, zero)
    assert np.abs(y).max() <= 1e-6


def test_sigmoid_keeps_its_digits_at_negative_gates():
    gate = np.linspace(-80, -10, 141, dtype=np.float32)[None]
    up = np.ones_like(gate)
    y, cache = layers.swiglu_forward(gate, up)
    exact = gate / (1 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(y, exact, rtol=1e-6)
    dgate, dup = layers.swiglu_backward(up, cache)
    sigma = 1 / (1 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(dgate, sigma * (1 + gate * (1 - sigma)), rtol=1e-5)
    np.testing.assert_allclose(dup, exact, rtol=1e-6)
    with np.errstate(all="raise", under="ignore"):
        y, _ = layers.swiglu_forward(np.array([[-1e4, 1e4]], np.float32), up[:, :2])
    np.testing.assert_array_equal(y, [[0, 1e4]])


@pytest.mark.parametrize("p", [0.5, 0.75, 0.9])
def test_dropout_of_a_query_that_sees_nothing_stays_zero(p):
    q, k, v, dy = (RNG.normal(size=(2, 1, 3, 4)).astype(np.float32) for _ in range(4))
    mask = np.array([[False, False, False], [True, True, True]])
    with np.errstate(all="raise", under="ignore"):
        y, cache = layers.attention_forward(
            q, k, v, key_mask=mask, dropout=p, rng=np.random.default_rng(1)
        )
        gradients = layers.attention_backward(dy, cache)
    assert not y[0].any()
    for array in (y, *gradients):
        assert np.isfinite(array).all()
        assert not array[0].any()


def test_large_scores_keep_their_differences():
    """Scores near 10⁴ that float32 holds exactly: what is lost is lost in the softmax."""
    rng = np.random.default_rng(1)
    shape = (2, 2, 50, 16)
    q = rng.integers(20, 30, size=shape).astype(float)
    k = 25 + rng.integers(-1, 2, size=shape) / 16
    v, dy = rng.normal(size=shape), rng.normal(size=shape)

    def gradients(dtype):
        _, cache = layers.attention_forward(*(a.astype(dtype) for a in (q, k, v)), scale=1.0)
        return layers.attention_backward(dy.astype(dtype), cache)

    # dq is a sum of ds · k, in which the 25 cancels: it may lose two digits more.
    for ours, exact, allowed in zip(
        gradients(np.float32), gradients(np.float64), (2e-4, 2e-6, 2e-6), strict=True
    ):
        assert np.abs(ours - exact).max() <= allowed * np.abs(exact).max()


ID = np.array([0])
OF_X, OF_GELU = layers.linear_forward(X, WEIGHT)[1], layers.gelu_tanh_forward(X)[1]
OF_ID, OF_GATE = layers.embedding_forward(ID, WEIGHT)[1], layers.swiglu_forward(X, X)[1]
# What is said, of which function, of what it is given.
REFUSED = {
    "another width": ("x has shape (2, 3, 4)", layers.linear_forward, X, WEIGHT.T),
    "integers": ("int64", layers.linear_forward, np.ones((2, 4), int), WEIGHT),
    "a list": ("x is a list", layers.linear_forward, [[1.0]], WEIGHT),
    "dy's width": ("dy has shape", layers.linear_backward, X, OF_X),
    "a norm's width": ("its last axis must be 4", layers.layernorm_forward, DY, GAIN, GAIN),
    "integers for gelu": ("float32 or float64", layers.gelu_tanh_forward, np.arange(3)),
    "integers for relu": ("float32 or float64", layers.relu_forward, np.arange(3)),
    "gate and up": ("they must be equal", layers.swiglu_forward, X, DY),
    "three axes": ("expected (B, H, T, D)", layers.attention_forward, X, X, X),
    "few keys": ("S >= T", layers.attention_forward, *(np.ones((1, 1, t, 2)) for t in (3, 2, 2))),
    "heads": (
        "H a multiple of K",
        layers.attention_forward,
        *(np.ones((1, heads, 2, 2)) for heads in (3, 2, 2)),
    ),
    "a norm of a list": ("x is a list", layers.layernorm_forward, [[1.0]], GAIN, GAIN),
    "an empty norm": ("weight is empty", layers.rmsnorm_forward, np.ones((2, 0)), np.ones(0)),
    "half precision": ("float16", layers.gelu_erf_forward, np.ones((2, 2), np.float16)),
    "a weight of one axis": ("expected (I, O)", layers.linear_forward, X, GAIN),
    "fewer rows of dy": ("expected 6 rows", layers.linear_backward, DY[:1], OF_X),
    "another shape of dy": ("expected (2, 3, 4)", layers.gelu_tanh_backward, X[:1], OF_GELU),
    "another dy of a gate": ("expected (2, 3, 4)", layers.swiglu_backward, X[:1], OF_GATE),
    "a negative id": ("holds -1", layers.embedding_forward, ID - 1, WEIGHT),
    "an id too large": ("from 0 to 3", layers.embedding_forward, ID + 4, WEIGHT),
    "ids that are no numbers": ("whole numbers", layers.embedding_forward, 1.0 * ID, WEIGHT),
    "dy of other ids": ("expected (1,", layers.embedding_backward, DY, OF_ID),
    "few targets": ("targets have shape (1,)", layers.linear_cross_entropy, X[0], WEIGHT.T, ID),
    "a high target": ("targets holds 99", layers.linear_cross_entropy, X[0, :1], WEIGHT.T, ID + 99),
    "rotating rows": ("expected (B, H, T, D)", layers.rope_forward, X, (np.ones(2), np.ones(2))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_layer_does_not_take_is_one_line(case):
    message, function, *arguments = REFUSED[case]
    with pytest.raises((ValueError, TypeError)) as error:
        function(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- the check that learners use: true for every layer, with errors that point at what is wrong ---

ROWS = X[0]
Q, K, V = (RNG.normal(size=(2, 2, 5, 3)) for _ in range(3))
ROTATION = layers.rope_rotation(np.arange(5)[None], layers.rope_frequencies(4), np.float64)
LAYERS = {
    "linear": (ROWS, WEIGHT, BIAS),
    "layernorm": (ROWS, GAIN, BIAS[:4]),
    "rmsnorm": (ROWS, GAIN),
    "embedding": (np.array([1, 0, 1]), ROWS),
    "gelu_tanh": (ROWS,),
    "gelu_erf": (ROWS.astype(np.float32),),
    "relu": (ROWS,),
    "softmax": (ROWS,),
    "swiglu": (ROWS, RNG.normal(size=ROWS.shape)),
    "attention": (Q, K, V),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_passes(name):
    pair = (getattr(layers, f"{name}_{way}") for way in ("forward", "backward"))
    assert numgpt.gradcheck(*pair, *LAYERS[name])


def test_layers_with_settings_pass():
    x = RNG.normal(size=(1, 2, 5, 4))
    assert numgpt.gradcheck(lambda x: layers.rope_forward(x, ROTATION), layers.rope_backward, x)
    weight, targets = RNG.normal(size=(7, 4)), np.array([0, 6, -100])
    forward = lambda x, weight: layers.linear_log_probs_forward(x, weight, targets)  # noqa: E731
    assert numgpt.gradcheck(forward, layers.linear_log_probs_backward, ROWS, weight)
    forward = lambda q, k, v: layers.attention_forward(  # noqa: E731
        q, k, v, dropout=0.4, rng=np.random.default_rng(3), key_mask=np.arange(5) < [[4], [5]]
    )
    assert numgpt.gradcheck(forward, layers.attention_backward, Q, K, V)


def test_an_error_names_input_element_and_both_values():
    def wrong(dy, cache):
        dx, dweight, dbias = layers.linear_backward(dy, cache)
        dweight[2, 1] += 0.5
        return dx, dweight, dbias

    with pytest.raises(AssertionError, match=r"input 1 at \(2, 1\): backward gives .*, the num"):
        numgpt.gradcheck(layers.linear_forward, wrong, *LAYERS["linear"])
    with pytest.raises(ValueError, match="gives 1 gradients, forward has 2 inputs"):
        numgpt.gradcheck(layers.swiglu_forward, lambda dy, cache: dy, *LAYERS["swiglu"])
    with pytest.raises(ValueError, match=r"input 0 has shape \(3, 4\), its gradient \(4, 3\)"):
        numgpt.gradcheck(layers.relu_forward, lambda dy, cache: dy.T, ROWS)
    with pytest.raises(ValueError, match="expected arrays of numbers"):
        numgpt.gradcheck(layers.relu_forward, layers.relu_backward, "text")
    nan = ROWS.copy()
    nan[0, 0] = np.nan
    with pytest.raises(AssertionError, match="nan"):
        numgpt.gradcheck(layers.gelu_tanh_forward, layers.gelu_tanh_backward, nan)


def test_inputs_stay_as_they_are():
    before = ROWS.copy()
    numgpt.gradcheck(layers.relu_forward, layers.relu_backward, ROWS)
    np.testing.assert_array_equal(ROWS, before)
