"""The machine's room: kernels are chosen early and politely, memory is used again, threads change
no result."""

import functools
import os
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import python

import numgpt
from numgpt import runtime
from numgpt.runtime import blocks, products, scratch, threads

EXCEPT = "except Warning as warning: print(warning)"
SHOW = "import numgpt; print(numgpt.runtime.kernels.describe())"


def test_kernels_are_chosen_before_numpy_loads_and_leave_no_trace():
    out = python(
        "import os, numgpt\n"
        "print(numgpt.runtime.kernels.CHOICE, '|', [n for n in os.environ if 'OPENBLAS' in n])"
    )
    assert out.endswith("| []")
    if (
        runtime.kernels.cpu_flags() >= runtime.kernels.AVX512_FLAGS
        and runtime.kernels.bundled_openblas()
    ):
        assert "chosen by numgpt" in out
        assert "SkylakeX" in python(SHOW)
    else:
        assert "left to the BLAS" in out


def test_a_users_choice_stays():
    out = python(SHOW, OPENBLAS_CORETYPE="Haswell")
    assert "OPENBLAS_CORETYPE=Haswell, set by the user" in out
    if runtime.kernels.bundled_openblas() and "avx2" in runtime.kernels.cpu_flags():
        assert "'kernels': 'Haswell'" in out


def test_the_threads_timeout_is_set_while_numpy_loads_unless_a_user_has_set_it():
    code = (
        "import builtins, os\n"
        "seen, real = [], builtins.__import__\n"
        "timeout = lambda: os.environ.get('OPENBLAS_THREAD_TIMEOUT')\n"
        "def watch(name, *rest, **more):\n"
        "    if name == 'numpy' and not seen: seen.append(timeout())\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watch\n"
        "import numgpt; print(seen[0], timeout())"
    )
    if platform.machine() in ("x86_64", "AMD64"):
        assert python(code) == f"{runtime.kernels.THREAD_TIMEOUT} None"
    assert python(code, OPENBLAS_THREAD_TIMEOUT="26") == "26 26"


def test_numpy_imported_first_is_said():
    assert "NumPy was imported before numgpt" in python("import numpy\n" + SHOW)


def test_threads_follow_the_environment():
    show = "import numgpt; print(numgpt.runtime.num_threads())"
    assert python(show, NUMGPT_NUM_THREADS="3") == "3"
    assert python(show, OPENBLAS_NUM_THREADS="1") == "1" or runtime.kernels.OPENBLAS is None
    for bad in ("0", "abc"):
        assert int(python(show, NUMGPT_NUM_THREADS=bad)) >= 1
        code = f"import warnings; warnings.simplefilter('error')\ntry: import numgpt\n{EXCEPT}"
        assert f"NUMGPT_NUM_THREADS='{bad}'" in python(code, NUMGPT_NUM_THREADS=bad)


def test_parallel_for_keeps_the_order(thread_count):
    assert runtime.parallel_for(lambda i: i * i, 50) == [i * i for i in range(50)]
    assert runtime.parallel_for(lambda i: runtime.parallel_for(lambda j: (i, j), 3), 4) == [
        [(i, j) for j in range(3)] for i in range(4)
    ]
    assert runtime.parallel_for(lambda i: i, 0) == []


def test_parallel_for_raises_what_a_piece_raised(thread_count):
    running = threading.Semaphore(100)

    def body(index):
        with running:
            if index == 3:
                raise KeyError("three")

    with pytest.raises(KeyError, match="three"):
        runtime.parallel_for(body, 20)
    assert running._value == 100  # nothing runs any more
    assert runtime.parallel_for(lambda i: i, 3) == [0, 1, 2]


def test_the_blas_gets_its_threads_back():
    if runtime.kernels.OPENBLAS is None:
        pytest.skip("NumPy runs on another BLAS than OpenBLAS")
    before = runtime.kernels.OPENBLAS.get_num_threads()
    inside = runtime.parallel_for(lambda _: runtime.kernels.OPENBLAS.get_num_threads(), 2)
    assert inside == [1, 1]
    assert runtime.kernels.OPENBLAS.get_num_threads() == before


FORK_BESIDE_WORK = """
import os, sys, threading
import numpy as np
import numgpt
from numgpt.runtime import empty, parallel_for, threads
from numgpt.runtime.kernels import OPENBLAS

numgpt.set_num_threads(2)
a, going = np.ones((200, 200), np.float32), True

def piece(index):
    a @ a
    empty((200, 200))

def work():
    while going:
        parallel_for(piece, 4)

parallel_for(piece, 4)  # imports what threads need: an import that a fork breaks off is Python's
thread = threading.Thread(target=work)
thread.start()
wrong = 0
for _ in range(60):
    child = os.fork()
    if child == 0:
        right = OPENBLAS is None or OPENBLAS.get_num_threads() == 2
        parallel_for(piece, 4)
        os._exit(not (right and (OPENBLAS is None or OPENBLAS.get_num_threads() == 2)))
    wrong += os.waitpid(child, 0)[1] != 0
going = False
thread.join()
sys.exit(wrong)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_forked_beside_work_has_all_threads():
    """Whatever another thread was in the middle of when the child was forked."""
    command = [sys.executable, "-W", "ignore", "-c", FORK_BESIDE_WORK]
    assert subprocess.run(command, timeout=60).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes():
    x = np.ones((4096, 1024), np.float32)
    runtime.add_into(x.copy(), x)  # starts the pool
    child = os.fork()
    if child == 0:
        runtime.add_into(x, x.copy())
        os._exit(0 if (x == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


@given(rows=st.integers(1, 3000), width=st.integers(1, 400))
def test_row_blocks_cover_every_row_once(rows, width):
    x = np.zeros((rows, width), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SMALL", 0)
        patch.setattr(blocks, "BLOCK_BYTES", 1 << 12)
        lengths = runtime.over_row_blocks(lambda x: x.__iadd__(1).shape[0], x)
    assert (x == 1).all()
    assert sum(lengths) == rows
    assert len(lengths) > 1 or x.nbytes < blocks.FEWEST_BLOCKS << 12 or rows < blocks.FEWEST_BLOCKS


def test_results_do_not_depend_on_threads_in_element_wise_work(thread_count):
    x = np.random.default_rng(0).normal(size=(3000, 700)).astype(np.float32)
    runtime.set_num_threads(thread_count)
    total = runtime.sum_rows(x)
    runtime.set_num_threads(1)
    np.testing.assert_array_equal(total, runtime.sum_rows(x))
    np.testing.assert_allclose(total, x.sum(axis=0, dtype=np.float64), atol=1e-2)


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90)),
    accumulate=st.booleans(),
)
def test_products(shape, accumulate):
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b, total = rng.normal(size=(m, k)), rng.normal(size=(k, n)), rng.normal(size=(m, n))
    expected = a @ b + (total if accumulate else 0)
    runtime.Accumulator(total, written={""} if accumulate else None).add_outer(a.T, b)
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(runtime.matmul(b.T, a.T), (a @ b).T, rtol=1e-12, atol=1e-12)


def test_large_products_add_up_panel_by_panel():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3000, 5)), rng.normal(size=(5, 700))
    total = np.ones((3000, 700))
    runtime.add_matmul(total, a, b)
    np.testing.assert_allclose(total, 1 + a @ b, rtol=1e-12, atol=1e-12)


@functools.cache  # the same for every number of threads, with small kernels and without
def products_of(rows: int, transposed: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """a, b, and their product in float64."""
    rng = np.random.default_rng(0)
    found = []
    # K decides the width of a panel; N is no multiple of it, or smaller.
    for inner, columns in ((500, 261), (500, 5), (3000, 70), (70_000, 2)):
        for dtype in (np.float32, np.float64):
            a = rng.normal(size=(inner, rows)).astype(dtype).T  # strided, too
            b = rng.normal(size=(columns, inner) if transposed else (inner, columns)).astype(dtype)
            b = b.T if transposed else b
            found.append((a, b, a.astype(np.float64) @ b.astype(np.float64)))
    return found


@pytest.mark.parametrize("small_kernels", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [2, 7, 16, 17])
def test_products_of_few_rows(rows, transposed, small_kernels, thread_count, monkeypatch):
    monkeypatch.setattr(products, "SMALL_KERNELS", small_kernels)
    monkeypatch.setattr(products, "LARGE_WEIGHTS_BYTES", 0)
    panels = []
    in_panels = products._in_panels
    monkeypatch.setattr(products, "_in_panels", lambda *a: panels.append(a[3]) or in_panels(*a))
    for a, b, exact in products_of(rows, transposed):
        (inner, columns), dtype = b.shape, b.dtype
        # K terms of size 1 make partial sums of size √K, each rounded; the errors of K such
        # roundings come to about √K · √K · eps.
        tolerances = {"rtol": 0, "atol": 4 * inner * np.finfo(dtype).eps}
        np.testing.assert_allclose(runtime.matmul(a, b), exact, **tolerances)
        out = np.full((rows, columns + 3), np.nan, dtype)
        runtime.matmul(a, b, out=out[:, :columns])
        np.testing.assert_allclose(out[:, :columns], exact, **tolerances)
        assert np.isnan(out[:, columns:]).all()
        inside = runtime.parallel_for(lambda _, a=a, b=b: runtime.matmul(a, b), 2)
        np.testing.assert_allclose(inside, [exact, exact], **tolerances)
    reached = small_kernels and rows <= 16 and (transposed or rows > products.VECTOR_ROWS)
    assert bool(panels) == reached
    assert all(products.NARROWEST_PANEL <= width <= products.WIDEST_PANEL for width in panels)


def test_threads_that_pay(monkeypatch):
    if runtime.kernels.OPENBLAS is None:
        assert runtime.worthwhile_threads(work=1 << 40, extra=1) == 1
        return
    monkeypatch.setattr(threads, "_num_threads", 64)
    char_recipe, gpt2 = 809_856, 124_439_808
    assert 2 <= runtime.worthwhile_threads(work=char_recipe * 12 * 64, extra=char_recipe) <= 8
    assert runtime.worthwhile_threads(work=gpt2 * 1024, extra=gpt2) == 1
    assert runtime.worthwhile_threads(work=1000 * 64, extra=1000) == 1
    monkeypatch.setattr(threads, "_num_threads", 1)
    assert runtime.worthwhile_threads(work=1 << 40, extra=1) == 1


def test_importing_numgpt_leaves_what_is_not_needed():
    loaded = python("import sys, numgpt; print(*sys.modules)").split()
    unneeded = {"regex", "numgpt.training.loop", "numgpt.formats", "concurrent.futures"}
    assert not unneeded & set(loaded)
    assert {"numgpt.training.adamw", "numgpt.models.llama"} <= set(loaded)


def test_names_that_are_imported_late_are_there():
    code = "import numgpt; print({'load', 'Chat', 'formats'} <= set(dir(numgpt)), numgpt.load)"
    assert python(code).startswith("True <function load")
    code = "from numgpt import *; from numgpt.generation import *; print(Chat is numgpt.Chat)"
    assert python("import numgpt; " + code).strip() == "True"
    with pytest.raises(AttributeError, match="nothing"):
        numgpt.nothing  # noqa: B018


@pytest.fixture
def pooled(monkeypatch):
    """The pool has arrays of every size, as where the allocator keeps nothing."""
    monkeypatch.setattr(scratch, "POOLED", scratch.UNALIGNED)


def test_large_arrays_are_aligned_and_the_largest_pooled():
    sizes = [scratch.UNALIGNED, 1 << 20, scratch.POOLED]
    for nbytes in sizes:
        arrays = [runtime.empty(nbytes, np.uint8), runtime.empty_like(np.zeros(nbytes // 8))]
        assert [array.ctypes.data % scratch.ALIGNMENT for array in arrays] == [0, 0]
        assert isinstance(arrays[0].base, np.ndarray) == (nbytes < scratch.POOLED)
    large = runtime.empty(scratch.POOLED, np.uint8)
    address = large.ctypes.data
    del large
    assert runtime.empty(scratch.POOLED, np.uint8).ctypes.data == address


def test_scratch_memory_is_used_again_but_never_while_in_use(pooled):
    first = runtime.empty((300, 300))
    address = first.ctypes.data
    assert address % scratch.ALIGNMENT == 0
    assert runtime.empty((300, 300)).ctypes.data != address
    view = first[10:20].T
    del first
    assert runtime.empty((300, 300)).ctypes.data != address  # the view still needs it
    del view
    addresses = {array.ctypes.data for array in [runtime.empty((300, 299)) for _ in range(3)]}
    assert address in addresses


def test_idle_memory_is_bounded():
    pool = scratch.Pool()
    for size in range(1, 60):
        held = [pool.empty((size * 50_000,), np.dtype(np.uint8)) for _ in range(2)]
        del held
        assert pool.idle_bytes <= 2 * pool.peak_bytes
    assert pool.used_bytes == 0
    pool.release()
    assert pool.idle_bytes == 0


def test_scratch_is_safe_across_threads(pooled):
    def work(seed: int) -> bool:
        for count in range(200):
            x = runtime.empty((100, 100 + count % 3))
            x.fill(seed)
            if not (x == seed).all():
                return False
        return True

    results: list[bool] = []
    workers = [threading.Thread(target=lambda s=s: results.append(work(s))) for s in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 4


def test_set_num_threads_refuses_zero():
    with pytest.raises(ValueError, match="expected a whole number"):
        runtime.set_num_threads(0)
    assert threads.num_threads() >= 1


ALLOCATOR = "import numgpt; print(numgpt.runtime.ALLOCATOR)"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_glibc_keeps_memory_unless_somebody_tunes_it():
    assert "keeps arrays below 32 MB" in python(ALLOCATOR)
    for name, value in (
        ("NUMGPT_KEEP_MEMORY", "0"),
        ("MALLOC_MMAP_THRESHOLD_", "200000"),
        ("MALLOC_ARENA_MAX_", "2"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ):
        assert python(ALLOCATOR, **{name: value}).startswith(f"left as it is: {name}")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_is_not_faulted_in_again():
    import resource  # not on Windows

    code = (
        "import numgpt, numpy as np, resource\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): [np.ones(1 << 20) for _ in range(8)]\n"
        "before = faults()\n"
        "for _ in range(5): [np.ones(1 << 20) for _ in range(8)]\n"
        "print(faults() - before)"
    )
    pages = 40 * 8 * (1 << 20) // resource.getpagesize()  # of all arrays together
    assert int(python(code)) < pages // 40
    # glibc adjusts its thresholds by itself, but not far enough.
    assert int(python(code, NUMGPT_KEEP_MEMORY="0")) > pages // 10


@pytest.mark.parametrize("into", [False, True])
def test_matrices_that_lie_apart_are_multiplied_by_as_one(into):
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(5, width)).astype(np.float32) for width in (3, 1, 4)]
    weight, whole = runtime.SideBySide(matrices), np.concatenate(matrices, axis=1)
    assert (weight.shape, weight.ndim, len(weight), weight.dtype) == ((5, 8), 2, 5, np.float32)
    np.testing.assert_array_equal(np.asarray(weight), whole)
    ids = np.array([[4, 0], [1, 1]])
    np.testing.assert_array_equal(weight[ids], whole[ids])
    x, dy = (rng.normal(size=(6, n)).astype(np.float32) for n in (5, 8))
    out, back = (np.empty((6, n), np.float32) if into else None for n in (8, 5))
    y, dx = runtime.matmul(x, weight, out), runtime.matmul(dy, weight.T, back)
    np.testing.assert_allclose(y, x @ whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, dy @ whole.T, rtol=1e-5, atol=1e-6)
    assert not into or (y is out and dx is back)


def test_a_gradient_whose_input_was_not_kept_is_refused():
    with pytest.raises(ValueError, match="its weight was frozen"):
        runtime.Accumulator(np.empty((2, 3))).add_outer(None, np.ones((4, 3)))
