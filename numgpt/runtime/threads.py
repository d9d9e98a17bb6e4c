"""Work on all cores: `parallel_for` runs independent pieces of work on a small pool of threads.

NumPy releases Python's lock inside its loops and products, so plain threads use all cores. While
our threads run, each product keeps to one of them: OpenBLAS is told to use a single thread, and
gets its own count back afterwards.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numgpt.messages import shown
from numgpt.options import OptionError
from numgpt.runtime.kernels import OPENBLAS, OpenBLAS
from numgpt.runtime.scratch import after_fork_in_child

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

LEAST_WORK = 1 << 27  # multiplications that a thread of its own is worth, about 3 ms of products
MOST_EXTRA = 1 << 24  # numbers, 64 MB in float32, for all further threads together

MOST_THREADS = 4096


class _Inside(threading.local):
    """Whether this thread is already running a piece: nested loops stay in it."""

    flag = False


_inside = _Inside()


class _SingleThreadedBLAS:
    """A re-entrant, shared `with`: OpenBLAS at one thread from the first entry to the last exit."""

    def __init__(self, openblas: OpenBLAS):
        self.openblas = openblas
        self.lock = threading.Lock()
        self.entered = 0
        self.before = 1

    def reset(self) -> None:
        """In a forked child: the threads that had entered, or held the lock, are not there."""
        self.lock = threading.Lock()
        if self.entered:
            self.entered = 0
            self.openblas.set_num_threads(self.before)

    # `entered` is above 0 whenever OpenBLAS may be at one thread: a fork can come at any point.

    def __enter__(self) -> None:
        with self.lock:
            if self.entered == 0:
                self.before = self.openblas.get_num_threads()
            self.entered += 1
            if self.entered == 1:
                self.openblas.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            if self.entered == 1:
                self.openblas.set_num_threads(self.before)
            self.entered -= 1


single_threaded_blas = (
    contextlib.nullcontext() if OPENBLAS is None else _SingleThreadedBLAS(OPENBLAS)
)


def _default_num_threads() -> int:
    """NUMGPT_NUM_THREADS, else what OpenBLAS was told (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS), else
    the cores."""
    if value := os.environ.get("NUMGPT_NUM_THREADS"):
        if value.isdecimal() and len(value) < 10 and 1 <= int(value) <= MOST_THREADS:
            return int(value)
        warnings.warn(
            f"NUMGPT_NUM_THREADS={shown(value)} is ignored: set it to a whole number from 1 to"
            f" {MOST_THREADS}",
            stacklevel=2,
        )
    if OPENBLAS is not None:
        return OPENBLAS.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads() -> int:
    """How many threads numgpt computes on."""
    return _num_threads


def in_a_piece() -> bool:
    """Whether this thread is running a piece of `parallel_for`."""
    return _inside.flag


def worthwhile_threads(work: int, extra: int) -> int:
    """On how many threads `work` (multiplications) is best done side by side, where each thread
    beyond the first needs `extra` numbers of memory of its own.

    It is 1 where the work is small, as starting a thread takes some 0.1 ms, where the extra memory
    would come to more than the work is worth, and where the BLAS can't be held to one thread each.
    """
    if OPENBLAS is None:
        return 1
    return max(1, min(_num_threads, work // LEAST_WORK, 1 + MOST_EXTRA // extra))


def single_thread_if_small(work: int) -> contextlib.AbstractContextManager:
    """Where `work` (multiplications) is too small to be shared, products stay in this thread.  The
    BLAS's own threads, once woken, keep a core busy for a while, which our threads may need."""
    return single_threaded_blas if work < LEAST_WORK else contextlib.nullcontext()


def blas_is_single_threaded() -> bool:
    """Whether a `with` around this holds products to one thread."""
    return getattr(single_threaded_blas, "entered", 0) > 0


def set_num_threads(count: int) -> None:
    """Compute on `count` threads from now on (also in OpenBLAS).  Raises ValueError below 1."""
    global _num_threads
    if not isinstance(count, numbers.Integral) or not 1 <= count <= MOST_THREADS:
        expected = f"expected a whole number from 1 to {MOST_THREADS}"
        raise OptionError(f"{{threads}}: {expected}", threads=count)
    _num_threads = int(count)
    if OPENBLAS is not None and not _blas_is_held:
        OPENBLAS.set_num_threads(count)
    _forget_pool()


def hold_blas() -> None:
    """From now on NumPy's own products use one thread, whatever `set_num_threads` says."""
    global _blas_is_held
    _blas_is_held = True
    if isinstance(single_threaded_blas, _SingleThreadedBLAS):
        with single_threaded_blas.lock:
            single_threaded_blas.before = 1  # also for who is within
            single_threaded_blas.openblas.set_num_threads(1)


def _forget_pool() -> None:
    """Start a new pool at the next use: the count has changed, or a fork has left the threads
    behind."""
    global _pool
    _pool = None


def _after_fork_in_child() -> None:
    """Of the threads that ran only the one that forked goes on, and whatever the others were in the
    middle of stays as it is."""
    _forget_pool()
    _inside.flag = False
    if isinstance(single_threaded_blas, _SingleThreadedBLAS):
        single_threaded_blas.reset()
    after_fork_in_child()


_pool: ThreadPoolExecutor | None = None
_blas_is_held = False
_num_threads = _default_num_threads()
if OPENBLAS is not None and OPENBLAS.get_num_threads() != _num_threads:
    OPENBLAS.set_num_threads(_num_threads)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def parallel_for(body: Callable[[int], Any], count: int) -> list[Any]:
    """Call body(0) … body(count - 1), on all threads, and return the results in that order.

    The calls must not depend on each other. Which thread runs which call is left to chance, what
    each call computes is not. (A single call, and products outside, may use the BLAS's own threads,
    whose number changes last bits.) The first error raised is raised here, after every running call
    has ended.
    """
    global _pool
    if count == 1:  # nothing to share: a product inside may use all of the BLAS's threads
        return [body(0)]
    with single_threaded_blas:
        helpers = 0 if in_a_piece() else min(count, _num_threads) - 1
        if helpers < 1:
            return [body(index) for index in range(count)]
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor

            _pool = ThreadPoolExecutor(_num_threads - 1, thread_name_prefix="numgpt")
        results: list[Any] = [None] * count
        waiting = deque(range(count))

        def drain() -> None:
            _inside.flag = True
            try:
                while waiting:
                    try:
                        index = waiting.popleft()
                    except IndexError:  # another thread took the last one
                        return
                    results[index] = body(index)
            except BaseException:
                waiting.clear()
                raise
            finally:
                _inside.flag = False

        futures = [_pool.submit(drain) for _ in range(helpers)]
        try:
            drain()
        finally:
            for future in futures:
                # waits: the buffers must not be given up while a thread writes to them
                future.exception()
        for future in futures:
            future.result()
        return results
