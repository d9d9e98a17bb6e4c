"""Every layer, forward and backward: PyTorch's answers, recorded and live; numerical
derivatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers.cases import CASES, as_dtype, golden_inputs
from support import GOLDENS, assert_close

from numgpt import layers
from numgpt.runtime import Accumulator

DTYPES = [np.float32, np.float64]
EVERY_SHAPE = [(name, shape) for name, case in CASES.items() for shape in case.shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_equals_recorded_pytorch(name, shape, dtype):
    results = CASES[name].ours(golden_inputs(name, shape, dtype))
    prefix = f"{name}/{'x'.join(map(str, shape))}/{np.dtype(dtype).name}/"
    with np.load(GOLDENS / "layers.npz") as goldens:
        recorded = {key[len(prefix) :]: goldens[key] for key in goldens if key.startswith(prefix)}
    assert recorded.keys() == results.keys()
    for key, expected in recorded.items():
        assert_close(results[key], expected, f"{name} {shape} {key}")


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=25)
def test_equals_pytorch_on_any_shape(name, dtype, data):
    case = CASES[name]
    inputs = as_dtype(_draw(case, data, 4 * case.largest), dtype)
    expected = case.theirs(inputs)
    results = case.ours(inputs)
    assert expected.keys() == results.keys()
    for key in expected:
        assert_close(results[key], expected[key], f"{name} {key}")


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=15)
def test_backward_is_the_numerical_derivative(name, data):
    case = CASES[name]
    inputs = _draw(case, data, case.largest)
    results = case.ours(inputs)
    rng = np.random.default_rng(0)

    def loss(arrays):
        return float((case.ours(arrays)["y"] * arrays["dy"]).sum())

    for key in case.differentiable:
        # The derivative in a random direction takes in every element at once.
        direction = rng.normal(size=inputs[key].shape)
        step = 1e-6
        if name == "relu":  # its slope jumps at 0: keep off
            inputs[key][np.abs(inputs[key]) < 1e-4] = 0.5
            results = case.ours(inputs)
        ahead = loss(inputs | {key: inputs[key] + step * direction})
        behind = loss(inputs | {key: inputs[key] - step * direction})
        numerical = (ahead - behind) / (2 * step)
        # float64 rounding divided by the step, and the third derivative times its square
        scale = max(1.0, abs(loss(inputs)), np.abs(results["d" + key]).max())
        assert numerical == pytest.approx(
            (results["d" + key] * direction).sum(), abs=3e-7 * scale * 10
        )


def _draw(case, data, largest):
    smallest = {"past": 0, "width": case.smallest_width}
    sizes = [
        data.draw(st.integers(smallest.get(name, 1), largest), label=name)
        for name in case.dimensions
    ]
    if "vocabulary" in case.dimensions:
        place = case.dimensions.index("vocabulary")
        sizes[place] = max(2, sizes[place])
    return case.draw(np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed")), *sizes)


@pytest.mark.parametrize("name", ["linear", "embedding", "layernorm", "rmsnorm"])
def test_gradients_are_added_to_the_sums_that_are_handed_over(name):
    case = CASES[name]
    inputs = golden_inputs(name, case.shapes[1], np.float64)
    once = case.ours(inputs)
    forward = getattr(layers, f"{name}_forward")
    backward = getattr(layers, f"{name}_backward")
    arguments = [inputs[key] for key in ("x", "ids", "weight", "bias") if key in inputs]
    keys = [key for key in ("dweight", "dbias") if key in once]
    sums = [Accumulator(np.full_like(once[key], np.nan)) for key in keys]  # the first is written

    def gradients(*sums):
        results = backward(inputs["dy"], forward(*arguments)[1], *sums)
        return (results,) if name == "embedding" else results[1 : 1 + len(keys)]

    fresh = gradients()
    for times in (1, 2, 3):
        given = gradients(*sums)
        for key, total, alone, array in zip(keys, sums, fresh, given, strict=True):
            assert array is total.out
            assert_close(total.out, times * alone, key)
            if "norm" not in name:  # whose cases have an epsilon of their own
                assert_close(alone, once[key], key)
