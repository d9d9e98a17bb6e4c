"""What the tests share: tolerances that follow from the dtype, and the files that only some
machines have."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from numgpt import GPT, GPTConfig
from numgpt.models import LanguageModel

SHARED = Path(__file__).parents[2] / "shared"
GOLDENS = Path(__file__).parent / "goldens"

# float32 has 24 bits: 1e-5 of the largest value leaves room for sums over some hundred terms in
# another order.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-10}


def assert_close(actual: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    """max |a - b| <= tolerance of the dtype · max(1, max |b|)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} != {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} != {expected.dtype}"
    if actual.size:
        difference = np.abs(actual - expected).max()
        limit = TOLERANCE[actual.dtype] * max(1, np.abs(expected).max())
        assert difference <= limit, f"{name}: differs by {difference}, allowed {limit}"


def shared(*parts: str) -> Path:
    """A development file beside the checkout; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the development file shared/{'/'.join(parts)}")
    return path


@contextlib.contextmanager
def memory_below(limit: float) -> Iterator[None]:
    """Fails if more memory than this, in bytes, is taken at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def refused(call, message: str, place: object = "", peak: int | None = None) -> str:
    """What is said of a call that is refused: one line, the file's name first, no warning beside
    it, and no more memory taken than peak, in bytes."""
    with warnings.catch_warnings(), memory_below(peak) if peak else contextlib.nullcontext():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            call()
    said = str(error.value)
    assert str(place) in said
    assert len(said.splitlines()) == 1
    assert len(said) < 1000 + len(str(place))
    return said


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: the user first, then in turns."""
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": content}
        for n, content in enumerate(contents)
    ]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def write_lines(path: Path, *values: object) -> str:
    """A file of JSON lines -> its path."""
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(lines, encoding="utf-8")
    return str(path)


def overwrite(path: Path, data: bytes) -> None:
    """write_bytes for files that are changed a thousand times: one that is emptied first, file
    systems write out to the disk when it is closed."""
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(data)
        file.truncate()


def is_mapped(array: np.ndarray | None) -> bool:
    """Whether an array's memory is a file."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def python(code: str, **environment: str) -> str:
    """The output of a fresh interpreter, which knows no settings but where oneDNN is."""
    settings = ("OPENBLAS_", "OMP_", "NUMGPT_")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(settings) or name == "NUMGPT_ONEDNN"
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """How many examples a test draws: few by default, many with -m slow."""
    counts = [few, pytest.param(many, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("examples", counts)


def clear(model: LanguageModel, seed: int = 2) -> LanguageModel:
    """The model with noise added, so that logits differ enough for greedy choices to be clear."""
    parameters = model.parameters.flat
    noise = np.random.default_rng(seed).normal(scale=0.3, size=parameters.size)
    parameters += noise.astype(parameters.dtype)
    return model


def clear_model() -> GPT:
    """A small random one."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=61)
    return clear(GPT(config, seed=1))


def run_to(trainer, stop: int) -> None:
    """Train as far as this step, as if Ctrl-C came then."""
    step = trainer.step

    def stopping():
        trainer.stop_requested = trainer.optimizer.steps + 1 >= stop
        return step()

    trainer.step = stopping
    trainer.run()
    assert trainer.optimizer.steps == stop


def fails_at(monkeypatch, owner: object, name: str, number: int, error: object) -> None:
    """This call of a function, from 1, raises an error; all others are as ever."""
    function, count = getattr(owner, name), itertools.count(1)

    def failing(*arguments, **options):
        if next(count) == number:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)
