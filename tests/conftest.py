"""Fixtures and settings for all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest
from support import clear_model, shared

from numgpt import GPT
from numgpt.tokenizer import BaseTokenizer, load_tokenizer

# Timings vary on shared machines: an example that takes long is no failure.
# Continuous integration draws the same examples every time; elsewhere each run tries new ones.
CI = "CI" in os.environ
hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=CI, database=None
)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `torch` is skipped, with the reason, where PyTorch or transformers is not
    installed."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        skip = pytest.mark.skip(reason=f"compares with PyTorch: {error}")
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def files_may_wait():
    """A test's files need not outlive a power cut, and `fsync` waits for the disk: it is called and
    does nothing.  (Commands in processes of their own still wait.)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> BaseTokenizer:
    return load_tokenizer(shared("gpt2"))


@pytest.fixture(scope="session")
def shakespeare() -> str:
    return shared("data", "tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture
def small_model() -> GPT:
    return clear_model()


# Scripts that record answers, and need what only they need.
collect_ignore_glob = ["goldens/*"]
