"""Fixtures and settings for all tests."""

import functools
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator

# Before NumPy is imported: side by side, each process has its share of the cores, and so have the
# commands that it starts. More threads than cores, each spinning for work, took twice the time.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))

import hypothesis
import pytest
from support import clear_model, shared

from numgpt import GPT, cli, runtime
from numgpt.tokenizer import BaseTokenizer, load_tokenizer

# Timings vary on shared machines: an example that takes long is no failure.
# Continuous integration draws the same examples every time; elsewhere each run tries new ones.
CI = "CI" in os.environ
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=CI, database=None
)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `live` is skipped, with the reason, where a library that it names is not
    installed."""
    for item in items:
        needed = {name for marker in item.iter_markers("live") for name in marker.args}
        missing = sorted(name for name in needed if not _is_installed(name))
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"compares with {', '.join(missing)}"))


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture(scope="session", autouse=True)
def files_may_wait():
    """A test's files need not outlive a power cut, and `fsync` waits for the disk: it is called and
    does nothing.  (Commands in processes of their own still wait.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = runtime.num_threads()
    yield
    runtime.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3])
def thread_count(request: pytest.FixtureRequest, threads_restored: None) -> int:
    runtime.set_num_threads(request.param)
    return request.param


@pytest.fixture
def one_thread(threads_restored: None) -> None:
    """Then neither sums nor memory depend on how two threads happen to meet."""
    runtime.set_num_threads(1)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with (
        playwright.sync_playwright() as running,
        # As root chromium has no sandbox; the pages are our own.
        running.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as opened,
    ):
        yield opened


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> BaseTokenizer:
    return load_tokenizer(shared("gpt2"))


@pytest.fixture(scope="session")
def shakespeare() -> str:
    return shared("data", "tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture
def small_model() -> GPT:
    return clear_model()


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command in this process -> exit status, stdout, stderr."""

    def call(*arguments, stdin: bytes | None = None):
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def works(call):
    """Run a command that has nothing to object -> stdout, stderr."""

    def works(*arguments, **given):
        status, out, err = call(*arguments, **given)
        assert status == 0, err
        return out, err

    return works


@pytest.fixture
def refuses(call):
    """Run a command that can't be: it ends with this status and one line of an error -> stderr."""

    def refuses(*arguments, status=2, **given):
        ended, out, err = call(*arguments, **given)
        assert (ended, out) == (status, ""), err
        *notes, error = err.splitlines()
        assert [": error: " in line for line in (*notes, error)] == [False] * len(notes) + [True]
        return err

    return refuses


# Scripts that record answers, and need what only they need.
collect_ignore_glob = ["goldens/*"]
