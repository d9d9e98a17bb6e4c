"""Products in bfloat16 for training: exact of what was rounded, and each array rounded once."""

import numpy as np
import pytest
from models.references import batch, small_model, to_transformers
from support import assert_close

from numgpt import GPT, GPTConfig, layers
from numgpt.runtime import Accumulator, Rounded, SideBySide, add_matmul, matmul, onednn, rounded
from numgpt.runtime import rounded_weight as working_copy
from numgpt.runtime.fewer_bits import BFloat16, from_bfloat16, to_bfloat16
from numgpt.runtime.kernels import cpu_flags


def float32(bits):
    return from_bfloat16(bits, np.empty_like(bits, np.float32))


TRIED = rounded.multiplier.__wrapped__


class Bits:
    """What oneDNN does with bits, by NumPy: for CPUs without the instructions."""

    @staticmethod
    def gemm(a, b, out):
        if a.dtype != np.uint16 or b.dtype != np.uint16 or a.shape[1] != len(b):
            return False
        np.matmul(float32(a), float32(b), out=out)
        return True

    @staticmethod
    def round(x, out):
        out[...] = to_bfloat16(x)


@pytest.fixture(params=["NumPy", "bits", "oneDNN"], autouse=True)
def multiplier(request, monkeypatch):
    """What multiplies; the last where it is installed, and the CPU can do it."""
    if request.param == "oneDNN":
        if onednn.find_onednn()[0] is None or not BFloat16.needs & cpu_flags():
            pytest.skip("no oneDNN, or no instructions for bfloat16")
        assert rounded.multiplier() is onednn.find_onednn()[0]
    else:
        by = Bits() if request.param == "bits" else None
        monkeypatch.setattr(rounded, "multiplier", lambda: by)
    return request.param


@pytest.fixture
def conversions(monkeypatch):
    """The shapes of what is rounded, in turn."""
    shapes = []

    def noted(x, library):
        shapes.append(x.shape)
        return to_bfloat16(x, library)

    monkeypatch.setattr(rounded, "to_bfloat16", noted)
    return shapes


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def r(x):
    """Rounded, in float64."""
    return float32(to_bfloat16(np.ascontiguousarray(x))).astype(np.float64)


def weights(kind):
    if kind == "side by side":
        return SideBySide([matrix(width, 40, seed=width).T for width in (30, 64)])
    return matrix(94, 40).T if kind == "transposed" else matrix(40, 94)


@pytest.mark.parametrize("kind", ["plain", "transposed", "side by side"])
def test_the_products_of_a_linear_layer(kind, conversions):
    plain, x, dy = weights(kind), matrix(70, 40, seed=1), matrix(70, 94, seed=2)
    weight, bias = working_copy(plain), matrix(94, seed=3)
    del conversions[:]
    y, cache = layers.linear_forward(x, weight, bias)
    dx, dw, db = layers.linear_backward(dy, cache._replace(bias=bias))
    assert conversions == [x.shape, dy.shape]  # once for both products that read each
    w = r(np.array(plain))
    assert_close(y, (r(x) @ w + bias).astype(np.float32))
    assert_close(dx, (r(dy) @ w.T).astype(np.float32))
    assert_close(dw, (r(x).T @ r(dy)).astype(np.float32))
    assert_close(db, dy.sum(axis=0))
    np.testing.assert_array_equal(np.asarray(weight, np.float64), w)
    assert np.asarray(weight, np.float64).dtype == np.float64
    assert np.asarray(weight).dtype == np.float32
    assert weight.nbytes <= w.size * 4
    more = Accumulator(dw.copy(), written={""})  # is added to
    layers.linear_backward(dy, cache._replace(bias=bias), more)
    assert_close(more.out, 2 * dw)


@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_in_place(order, monkeypatch):
    monkeypatch.setattr("numgpt.runtime.products.PANEL_BYTES", 1 << 12)  # a few rows at a time
    a, b = matrix(60, 50), matrix(50, 70, seed=1)
    total = np.array(matrix(60, 70, seed=2), order=order)
    expected = (total + r(a) @ r(b)).astype(np.float32)
    add_matmul(total, Rounded.of(a), Rounded.of(b))
    assert_close(total, expected)
    matmul(Rounded.of(a), Rounded.of(b), total)
    assert_close(total, (r(a) @ r(b)).astype(np.float32))
    with pytest.raises(ValueError, match=r"mismatch|a product of \(60, 50\) and \(60, 50\)"):
        matmul(a, Rounded.of(a))


def test_the_loss_in_chunks(conversions, monkeypatch):
    monkeypatch.setattr("numgpt.layers.cross_entropy.CHUNK_BYTES", 1 << 12)
    x, w = matrix(30, 16), matrix(90, 16, seed=1)
    targets = np.random.default_rng(2).integers(0, 90, 30)
    targets[::7] = -100
    weight = working_copy(w)
    del conversions[:]
    loss, dx, dw = layers.linear_cross_entropy(x, weight, targets)
    assert conversions[0] == (25, 16)
    assert sum(rows for rows, width in conversions[1:] if width == 90) == 25  # dz, in chunks
    of_z = layers.linear_cross_entropy(r(x), r(w), targets)
    assert loss == pytest.approx(of_z[0], rel=1e-6)
    # dz is rounded, too: by up to 2⁻⁹ of each of its numbers.
    assert np.abs(dx - of_z[1]).max() < 2**-8 * np.abs(of_z[1]).max()
    assert np.abs(dw - of_z[2]).max() < 2**-8 * np.abs(of_z[2]).max()
    logp, cache = layers.linear_log_probs_forward(x, weight, targets)
    assert -logp.sum() / 25 == pytest.approx(loss, rel=1e-6)
    dlogp = np.where(targets == -100, 0, -1 / 25).astype(np.float32)
    other_dx, other_dw = layers.linear_log_probs_backward(dlogp, cache)
    assert_close(other_dx, dx)
    assert_close(other_dw, dw)


@pytest.mark.parametrize("name", ["default", "untied", "llama_grouped", "llama_qwen2"])
def test_a_models_gradients_are_near_those_of_float32(name, conversions):
    model = small_model(name)
    parts = [batch(model.config, (2, 9), seed) for seed in (0, 1)]
    loss, g = model.loss_and_grads(*parts[0])
    _, g = model.loss_and_grads(*parts[1], add_to=g)
    exact, parameters = g.flat.copy(), {n: a.copy() for n, a in model.parameters.items()}
    with model.autocast():
        of_weights = len(conversions)
        rounded_loss, g = model.loss_and_grads(*parts[0])
        of_batch = len(conversions) - of_weights
        _, g = model.loss_and_grads(*parts[1], add_to=g)
        assert len(conversions) == of_weights + 2 * of_batch  # weights no second time
        assert rounded_loss == pytest.approx(model.loss(*parts[0]), rel=1e-6)
    assert 0 < abs(rounded_loss - loss) < 2**-8 * loss
    assert 0 < np.linalg.norm(g.flat - exact) < 0.02 * np.linalg.norm(exact)
    assert model.loss_and_grads(*parts[0])[0] == loss  # outside as ever
    assert all((model.parameters[n] == a).all() for n, a in parameters.items())
    model.parameters[next(iter(parameters))][...] *= 2
    with model.autocast():
        assert abs(model.loss(*parts[0]) - rounded_loss) > 1e-4  # rounded anew


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", ["default", "llama_grouped"])
def test_no_farther_from_float32_than_pytorchs_autocast(name):
    """… which rounds logits as well, and attention's products."""
    import torch

    model = small_model(name)
    ids, targets = batch(model.config, (4, 16))
    theirs = to_transformers(model)

    def of_theirs(enabled):
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = theirs(torch.tensor(ids)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), torch.tensor(targets).flatten()
        )
        loss.backward()
        return torch.cat([p.grad.flatten() for p in theirs.parameters()]).numpy()

    exact = of_theirs(False)
    distance = np.linalg.norm(of_theirs(True) - exact) / np.linalg.norm(exact)
    _, g = model.loss_and_grads(ids, targets)
    float32 = g.flat.copy()
    with model.autocast():
        _, g = model.loss_and_grads(ids, targets)
    ours = np.linalg.norm(g.flat - float32) / np.linalg.norm(float32)
    assert 0 < ours < distance


def test_autocast_ends_with_an_error_too():
    model = small_model("default")
    before = [linear.weight for block in model.blocks for linear in block.linears]

    def fails():
        with model.autocast():
            assert isinstance(model.unembedding.weight, Rounded)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    after = [linear.weight for block in model.blocks for linear in block.linears]
    assert all(a is b for a, b in zip(before, after, strict=True))
    with model.autocast("float32"):
        assert model.unembedding.weight is model.parameters["wte"]


@pytest.mark.parametrize("dtype", ["float16", "int8", None])
def test_other_kinds_are_refused(dtype):
    with (
        pytest.raises(ValueError, match=f"autocast to {dtype!r} of a model in float32"),
        small_model("default").autocast(dtype),
    ):
        pass
    in_float64 = GPT(GPTConfig(1, 1, 4, 8, 9), dtype=np.float64)
    with pytest.raises(ValueError, match="of a model in float64"), in_float64.autocast():
        pass


def test_a_model_in_fewer_bits_stays_so():
    import numgpt

    model, tokenizer = numgpt.load("shakespeare", dtype="int8")
    ids = tokenizer.encode("To be")
    expected = model(ids)
    with model.autocast():
        np.testing.assert_array_equal(model(ids), expected)


WRONG = {
    "unchanged": lambda a, b, out: True,
    "refused": lambda a, b, out: False,
    "of the transpose": lambda a, b, out: Bits.gemm(a, b.T if b.flags.f_contiguous else b, out),
    "in place of the sum": lambda a, b, out: Bits.gemm(a, b, out) and not out.fill(7),
}


@pytest.mark.parametrize("name", [*WRONG, "nothing wrong", "no such function", "no instructions"])
def test_a_library_is_used_after_a_trial(name, monkeypatch):
    library = Bits()
    if name in WRONG:
        library.gemm = WRONG[name]
    elif name == "no such function":
        monkeypatch.delattr(Bits, "gemm")
    flags = frozenset() if name == "no instructions" else BFloat16.needs
    monkeypatch.setattr(rounded, "find_onednn", lambda: (library, ""))
    monkeypatch.setattr(rounded, "cpu_flags", lambda: flags)
    assert TRIED() is (library if name == "nothing wrong" else None)
    monkeypatch.setattr(rounded, "find_onednn", lambda: (None, "not installed"))
    assert TRIED() is None
