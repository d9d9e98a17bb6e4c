"""Weights in fewer bits, with oneDNN and without; what oneDNN is used for, and when it is not."""

import copy
import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import assert_close, python

from numgpt.runtime import matmul, onednn, parallel_for, single_thread_if_small, stored_rows
from numgpt.runtime.fewer_bits import KINDS, ROUNDED_BY_LIBRARY, Int8, from_bfloat16, to_bfloat16
from numgpt.runtime.kernels import cpu_flags
from numgpt.runtime.stored_rows import FewerBits

LIBRARY = onednn.find_onednn()[0]
RELATIVE = {"bfloat16": 2**-8, "int8": 1 / 254}  # of the largest of a row, at most


@pytest.fixture(params=["NumPy", "oneDNN"])
def library(request):
    """What multiplies; the second where it is installed, and the CPU can do it."""
    if request.param == "NumPy":
        return None
    if LIBRARY is None or LIBRARY.version.startswith("2."):
        pytest.skip(f"oneDNN: {onednn.find_onednn()[1]}")
    if not all(kind.needs & cpu_flags() for kind in KINDS.values()):
        pytest.skip("the CPU has no instructions for fewer bits")
    assert all(kind.multiplier() is LIBRARY for kind in KINDS.values())
    return LIBRARY


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_bfloat16_is_the_nearest_and_of_two_the_even_one():
    halves = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8], np.float32)
    expected = np.array([1, 1 + 4 * 2**-8, 1 + 2**-7, -1], np.float32)
    assert to_bfloat16(halves).tolist() == (expected.view(np.uint32) >> 16).tolist()
    large = np.array([np.inf, 3.4e38, np.nan, 0.0, -0.0], np.float32)
    back = (to_bfloat16(large).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back, np.array([np.inf, np.inf, np.nan, 0, 0], np.float32))


def test_the_library_rounds_in_the_same_way(library):
    if library is None:
        pytest.skip("there is none")
    x = matrix(ROUNDED_BY_LIBRARY) * 10.0 ** matrix(ROUNDED_BY_LIBRARY, seed=1)
    x[:8] = 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, np.inf, -np.inf, 3.4e38, 0, -0.0
    x[8:10] = 1e-40, np.nan  # the first is less than 2⁻¹²⁶
    expected = to_bfloat16(x)
    expected[8] = 0
    found = to_bfloat16(x, library)
    assert np.isnan(from_bfloat16(found, np.empty_like(x))[9])
    np.testing.assert_array_equal(np.delete(found, 9), np.delete(expected, 9))
    assert to_bfloat16(x[8:9], library) == 1e-40 // 2**-133  # few are not sent there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(130, 70), (64, 64), (1000, 33), (7, 5)])
def test_rows_and_products_are_those_of_the_rounded_matrix(kind, shape, library):
    w = matrix(*shape)
    weight = KINDS[kind].rounded(w, library)
    rounded = np.asarray(weight)
    assert (weight.shape, rounded.dtype, weight.size) == (shape, np.float32, w.size)
    limit = RELATIVE[kind] * np.abs(w).max(axis=1, keepdims=True) * (1 + 1e-6)
    assert (np.abs(rounded - w) <= limit).all()
    ids = np.array([[3, 0], [shape[0] - 1, 3]])
    np.testing.assert_array_equal(weight[ids], rounded[ids])
    for count in (1, 2, 5, 40):
        x, dy = matrix(count, shape[1], seed=1), matrix(count, shape[0], seed=2)
        exact = x.astype(np.float64) @ rounded.T.astype(np.float64)
        # oneDNN rounds x as well: to 2⁻⁸, or to two parts of int8 (float32's own error is below).
        of_x = 0 if weight.library is None else {"bfloat16": 2**-8, "int8": 1 / 127 / 510}[kind]
        row = {"bfloat16": np.abs(x), "int8": np.abs(x).max(axis=1, keepdims=True) + 0 * x}[kind]
        limit = of_x * row @ np.abs(rounded).T + 1e-5 * np.abs(exact).max()
        assert (np.abs(matmul(x, weight.T) - exact) <= limit).all()
        out = np.empty((count, 2 * shape[0]), np.float32)[:, : shape[0]]  # rows with gaps
        assert matmul(x, weight.T, out) is out
        np.testing.assert_allclose(out, matmul(x, weight.T), rtol=1e-5, atol=1e-5)
        exact = dy.astype(np.float64) @ rounded.astype(np.float64)
        assert_close(matmul(dy, weight), exact.astype(np.float32))
        double = matmul(x.astype(np.float64), weight.T)  # by the matrix, without rounding x
        exact = x.astype(np.float64) @ rounded.T.astype(np.float64)
        assert np.abs(double - exact).max() <= 2**-23 * np.abs(x @ rounded.T).max() * shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_found_as_an_arrays_are(kind, library):
    weight = KINDS[kind].rounded(matrix(130, 70), library)
    rows = np.asarray(weight)
    for ids in (0, -1, slice(2, 5), [1, 2], np.array([-1, 129]), np.array([], int), np.array(7)):
        np.testing.assert_array_equal(weight[ids], rows[ids])
    np.testing.assert_array_equal(weight.T[[1, -1]], rows.T[[1, -1]])
    np.testing.assert_array_equal(weight[:, [3, 5]], rows[:, [3, 5]])
    with pytest.raises(IndexError, match="130 is out of bounds"):
        weight[np.array([0, 130])]
    assert repr(weight).startswith(f"<{type(weight).__name__}: (130, 70), ")
    assert len(list(weight)) == 130


def test_sums_that_do_not_fit_32_bits_are_not_onednns():
    weight = Int8.rounded(np.ones((64, 70_000), np.float32), Int8.multiplier())
    assert weight.library is None
    assert matmul(np.ones((1, 70_000), np.float32), weight.T)[0, 0] == pytest.approx(70_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_of_many_panels(kind, library, monkeypatch, thread_count):
    monkeypatch.setattr(stored_rows, "PANEL_BYTES", 1 << 16)
    weight, x = KINDS[kind].rounded(matrix(1000, 96), library), matrix(30, 96, seed=1)
    dy = matrix(30, 1000, seed=2)
    rounded = np.asarray(weight)
    dx = matmul(dy, weight)
    assert_close(dx, (dy.astype(np.float64) @ rounded).astype(np.float32))
    for _ in range(5):  # whichever thread is first
        np.testing.assert_array_equal(matmul(dy, weight), dx)
    weight = KINDS[kind].rounded(matrix(1000, 96), None)
    assert_close(matmul(x, weight.T), (x.astype(np.float64) @ rounded.T).astype(np.float32))


@given(st.integers(1, 5), st.integers(1, 200), st.floats(-8, 8), st.integers(0, 99))
def test_two_parts_of_int8_are_as_good_as_float32(count, width, log_scale, seed):
    """One feature is a thousand times the others: x rounded once would lose these."""
    weight = Int8.rounded(matrix(130, width, seed=seed), Int8.multiplier())
    x = matrix(count, width, seed=seed + 1) * np.float32(10.0**log_scale)
    x[:, 0] *= 1000
    exact = x.astype(np.float64) @ np.asarray(weight, np.float64).T
    limit = np.abs(x).max() / 127 / 510 * np.abs(np.asarray(weight)).sum(axis=1).max()
    assert np.abs(matmul(x, weight.T) - exact).max() <= limit + 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_nothing(kind, library):
    w = matrix(70, 66)
    w[3] = 0
    weight = KINDS[kind].rounded(w, library)
    x = matrix(3, 66, seed=1)
    x[1] = 0
    y = matmul(x, weight.T)
    assert not y[1].any()
    assert not y[:, 3].any()
    assert not np.asarray(weight)[3].any()
    assert matmul(x[:0], weight.T).shape == (0, 70)
    assert np.abs(matmul(x * np.float32(1e-36), weight.T)).max() < 1e-33
    for damage in (np.nan, np.inf):
        x[2, 5] = damage
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(matmul(x, weight.T)[2][w[:, 5] != 0]).any()


def test_a_row_with_an_infinity_is_nan_in_int8(library):
    """Its numbers mean nothing: infinities would have any sign."""
    if library is None:
        pytest.skip("NumPy multiplies what was written out in float32")
    weight, x = Int8.rounded(matrix(70, 66), library), matrix(3, 66, seed=1)
    exact = matmul(x, weight.T)
    x[1, 5] = -np.inf
    with np.errstate(all="raise"):
        y = matmul(x, weight.T)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[::2], exact[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_one_above_another(kind, library):
    parts = [KINDS[kind].rounded(matrix(n, 70, seed=n), library) for n in (128, 64, 40)]
    before = [np.asarray(part) for part in parts]
    whole = FewerBits.one_above_another(parts)
    np.testing.assert_array_equal(np.asarray(whole), np.concatenate(before))
    x = matrix(5, 70)
    y = matmul(x, whole.T)
    assert_close(y, np.concatenate([matmul(x, part.T) for part in parts], axis=1))
    for part, rows in zip(parts, before, strict=True):
        np.testing.assert_array_equal(np.asarray(part), rows)
        assert np.shares_memory(part.data, whole.data)
    if parts[0].library is not None:  # rows that fill no block have nothing beside them
        assert FewerBits.one_above_another([parts[2], parts[0]]) is None
    if library is not None:  # … nor parts of one, but the last
        assert FewerBits.one_above_another([parts[0], parts[2], parts[1]]) is None
    other = KINDS["int8" if kind == "bfloat16" else "bfloat16"].rounded(before[0], library)
    assert FewerBits.one_above_another([parts[0], other]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_to_machines_of_every_kind(kind, library, monkeypatch):
    weight = KINDS[kind].rounded(matrix(130, 70), library)
    saved = pickle.dumps(weight)
    for other in (copy.deepcopy(weight), pickle.loads(saved)):
        np.testing.assert_array_equal(np.asarray(other), np.asarray(weight))
        assert other.library is KINDS[kind].multiplier()
    monkeypatch.setattr(KINDS[kind], "multiplier", classmethod(lambda cls: None))
    there = pickle.loads(saved)
    assert there.library is None
    np.testing.assert_array_equal(np.asarray(there), np.asarray(weight))


def test_memory():
    w = matrix(640, 512)
    for kind, bytes_each in (("bfloat16", 2), ("int8", 1)):
        nbytes = KINDS[kind].rounded(w, KINDS[kind].multiplier()).nbytes
        assert bytes_each * w.size <= nbytes <= 1.02 * bytes_each * w.size
        assert KINDS[kind].rounded(w, None).T.nbytes == KINDS[kind].rounded(w, None).nbytes


# --- oneDNN ---


def info(**environment) -> str:
    code = "from numgpt.runtime.onednn import find_onednn; print(find_onednn()[1])"
    return python(code, **environment)


def test_it_can_be_left_alone():
    assert info(NUMGPT_ONEDNN="0") == "not used: NUMGPT_ONEDNN=0"


def test_what_is_no_library_is_said(tmp_path):
    path = tmp_path / "libdnnl.so"
    path.write_text("no library")
    assert info(NUMGPT_ONEDNN=str(path)).startswith(f"not used: {path}: ")
    assert "No such file" in info(NUMGPT_ONEDNN=str(tmp_path / "absent.so"))
    if sys.platform == "linux":  # one that has none of the functions
        assert "dnnl" in info(NUMGPT_ONEDNN="libm.so.6")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_multiplies_wrongly_is_not_used(kind, library, monkeypatch):
    if library is None:
        pytest.skip("there is none to be wrong")
    right = library.product
    wrong = {
        "the product": (
            "product",
            lambda kind, x, w, out, *s: (right(kind, x, w, out, *s), out.__iadd__(1)),
        ),
        "the order": ("pack", lambda *args: np.roll(type(library).pack(library, *args), 1)),
        "no order": ("pack", lambda *args: None),
        "an error": ("product", lambda *_: library._call("engine_create", None, 9, 9)),
    }
    for name, function in wrong.values():
        KINDS[kind].multiplier.__func__.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(library, name, function)
            assert KINDS[kind].multiplier() is None
        KINDS[kind].multiplier.__func__.cache_clear()
    assert KINDS[kind].multiplier() is library


needs_onednn = pytest.mark.skipif(LIBRARY is None, reason="oneDNN is not installed")


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 100])
def test_large_products_of_float32_are_onednns(rows, transposed, monkeypatch):
    asked = []
    real = LIBRARY.gemm
    monkeypatch.setattr(LIBRARY, "gemm", lambda *arrays: asked.append(1) or real(*arrays))
    a, b = matrix(rows, 500), matrix(500, 600, seed=1)
    expected = (a.astype(np.float64) @ b).astype(np.float32)
    b = np.asfortranarray(b) if transposed else b
    assert_close(matmul(a, b), expected)
    assert len(asked) == (rows > 1)
    out = np.empty((rows, 700), np.float32)[:, 50:650]
    assert_close(matmul(np.asfortranarray(a), b, out), expected)
    odd = np.empty((rows, 1200), np.float32)[:, ::2]  # lies as no library wants it
    assert_close(matmul(a[:, ::-1][:, ::-1], b, odd), expected)
    del asked[:]
    for found in parallel_for(lambda _: matmul(a, b), 4):  # each in its own thread
        assert_close(found, expected)
    with single_thread_if_small(1):
        assert_close(matmul(a, b), expected)
    assert len(asked) == (5 if rows > 1 else 0)
    del asked[:]
    matmul(a.astype(np.float64), b.astype(np.float64))
    matmul(a[:, :10], b[:10, :10])
    assert not asked


@needs_onednn
@pytest.mark.parametrize(
    ("rows", "in_columns", "copied"),
    [
        (3, False, True),
        (4, False, False),
        (32, False, False),
        (33, False, True),
        (3, True, True),
        (4, True, False),
        (128, True, False),
        (129, True, True),
    ],
)
def test_few_rows_of_float32_meet_weights_as_they_lie(rows, in_columns, copied, monkeypatch):
    asked = []
    real = LIBRARY.product
    monkeypatch.setattr(LIBRARY, "product", lambda *given: asked.append(1) or real(*given))
    a, b = matrix(rows, 300), matrix(300, 900)[:, 100:700]
    b = matrix(900, 400)[100:700, :300].T if in_columns else b  # of a wider one, both
    for _ in range(2):
        assert_close(matmul(a, b), (a.astype(np.float64) @ b).astype(np.float32))
        b *= -3  # other weights in the same memory
    assert len(asked) == (0 if copied or LIBRARY.version < "3" else 2)  # oneDNN 2 has other ones


@needs_onednn
def test_what_multiplies_is_made_once_for_all_weights_of_a_shape():
    if LIBRARY.version < "3":
        pytest.skip("oneDNN 2 has other primitives")
    before, a = LIBRARY._primitive.cache_info().misses, matrix(5, 301)
    for seed in range(3):
        b = matrix(301, 999, seed=seed)
        assert_close(matmul(a, b), (a.astype(np.float64) @ b).astype(np.float32))
    assert LIBRARY._primitive.cache_info().misses == before + 1


@needs_onednn
def test_shapes_that_do_not_fit_are_refused_as_numpy_does():
    for a, b in (((600, 500), (600, 700)), ((600, 700), (600, 600))):
        with pytest.raises(ValueError, match="mismatch"):
            matmul(matrix(*a), matrix(*b))
    with pytest.raises(ValueError, match=r"mismatch|broadcast"):
        matmul(matrix(600, 600), matrix(600, 700), np.empty((600, 600), np.float32))


@needs_onednn
def test_it_is_found_once_and_in_a_piece_of_work_too():
    code = (
        "import threading, numpy as np, numgpt.runtime as runtime\n"
        "from numgpt.runtime import kernels, onednn\n"
        "runtime.set_num_threads(2); a = np.ones((600, 600), np.float32)\n"
        "def found(_): runtime.matmul(a, a); return id(onednn.find_onednn()[0])\n"
        "ids = set(runtime.parallel_for(found, 2)); barrier = threading.Barrier(4)\n"
        "def at_once(): barrier.wait(); ids.add(id(onednn.find_onednn()[0]))\n"
        "threads = [threading.Thread(target=at_once) for _ in range(4)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(len(ids), kernels.OPENBLAS.get_num_threads())"
    )
    assert python(code) == "1 1"


@needs_onednn
def test_openblas_keeps_to_one_thread():
    code = (
        "import numgpt.runtime as runtime; from numgpt.runtime import onednn, kernels\n"
        "onednn.find_onednn(); runtime.set_num_threads(2)\n"
        "print(kernels.OPENBLAS.get_num_threads(), runtime.num_threads())"
    )
    assert python(code) == "1 2"


@needs_onednn
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_multiplies():
    code = (
        "import os, numpy as np; from numgpt.runtime import matmul\n"
        "a = np.ones((300, 600), np.float32); b = np.ones((600, 700), np.float32)\n"
        "matmul(a, b)\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(int(not (matmul(a, b) == 600).all()))\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert python(code) == "0"
