"""The check that learners use: true for every layer, and an error that points at what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import numgpt
from numgpt import layers

RNG = np.random.default_rng(0)
X, GAIN, BIAS = RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=4)
Q, K, V = (RNG.normal(size=(2, 2, 5, 3)) for _ in range(3))
ROTATION = layers.rope_rotation(np.arange(5)[None], layers.rope_frequencies(4), np.float64)
LAYERS = {
    "linear": (X, RNG.normal(size=(4, 2)), RNG.normal(size=2)),
    "layernorm": (X, GAIN, BIAS),
    "rmsnorm": (X, GAIN),
    "embedding": (np.array([1, 0, 1]), X),
    "gelu_tanh": (X,),
    "gelu_erf": (X.astype(np.float32),),
    "relu": (X,),
    "softmax": (X,),
    "swiglu": (X, RNG.normal(size=X.shape)),
    "attention": (Q, K, V),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_passes(name):
    pair = (getattr(layers, f"{name}_{way}") for way in ("forward", "backward"))
    assert numgpt.gradcheck(*pair, *LAYERS[name])


def test_layers_with_settings_pass():
    assert numgpt.gradcheck(
        lambda x: layers.rope_forward(x, ROTATION),
        layers.rope_backward,
        RNG.normal(size=(1, 2, 5, 4)),
    )
    weight, targets = RNG.normal(size=(7, 4)), np.array([0, 6, -100])
    assert numgpt.gradcheck(
        lambda x, weight: layers.linear_log_probs_forward(x, weight, targets),
        layers.linear_log_probs_backward,
        X,
        weight,
    )
    mask = lambda q, k, v: layers.attention_forward(  # noqa: E731
        q, k, v, dropout=0.4, rng=np.random.default_rng(3), key_mask=np.arange(5) < [[4], [5]]
    )
    assert numgpt.gradcheck(mask, layers.attention_backward, Q, K, V)


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
        numgpt.gradcheck(layers.relu_forward, lambda dy, cache: dy.T, X)
    with pytest.raises(ValueError, match="expected arrays of numbers"):
        numgpt.gradcheck(layers.relu_forward, layers.relu_backward, "text")
    nan = X.copy()
    nan[0, 0] = np.nan
    with pytest.raises(AssertionError, match="nan"):
        numgpt.gradcheck(layers.gelu_tanh_forward, layers.gelu_tanh_backward, nan)


def test_inputs_stay_as_they_are():
    before = X.copy()
    numgpt.gradcheck(layers.relu_forward, layers.relu_backward, X)
    np.testing.assert_array_equal(X, before)
