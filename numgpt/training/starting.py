"""How a run begins: tokenizer, model and tokens, put into its directory all at once.

From then on it is a run that can be resumed, at any instant; before, nothing is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from numgpt.data.corpus import TOKENS_FILE
from numgpt.data.finding import OTHER_WEIGHTS
from numgpt.files import finish_replacing, replacing_together
from numgpt.formats.huggingface import WEIGHTS_FILE, model_files
from numgpt.formats.peft import ADAPTER_FILES
from numgpt.messages import quoted
from numgpt.tokenizer.base import tokenizer_files
from numgpt.training.checkpoint import CHECKPOINT_FILE, RunState, save_checkpoint
from numgpt.training.config import RunConfig
from numgpt.training.log import CURVE_FILE, DAMAGED_LOG_FILE, LOG_FILE

ConfigT = TypeVar("ConfigT", bound=RunConfig)
RUN_FILES = (CHECKPOINT_FILE, TOKENS_FILE, LOG_FILE, DAMAGED_LOG_FILE, CURVE_FILE, *ADAPTER_FILES)


Prepare = Callable[[ConfigT, Path, Path], RunState]  # config, out, where its files are staged


def start_run(
    config: ConfigT, out: Path, prepare: Prepare[ConfigT], overwrite: bool = False
) -> None:
    """Write a new run into the directory `out`: what `prepare` stages, and a checkpoint of step 0.

    With `overwrite` it takes the place of the run or model that is there, in the same moment.
    Raises ValueError or OSError for what is known to fail later, and for a directory that holds
    something already; then everything is as it was.
    """

    def check_free() -> None:
        _check_no_run_within(out)
        if not overwrite:
            _check_free(out)

    finish_replacing(out)
    check_free()
    with replacing_together(out, run_files(out), check_free) as staged:
        state = prepare(config, out, staged)
        config.cut_warmup()
        save_checkpoint(staged, state)


def _check_free(out: Path) -> None:
    """Raises ValueError where a directory, or what it would hold of the run's other weights, holds
    a run, a model or a tokenizer."""
    for place in (out, *(out / name for name in OTHER_WEIGHTS)):
        if there := run_files(place):
            resume = f"continue the run with --resume {quoted(place)}, "
            way_out = resume if CHECKPOINT_FILE in there else ""
            telling = [name for name in (CHECKPOINT_FILE, WEIGHTS_FILE) if name in there]
            raise ValueError(
                f"{place} holds a {(telling or there)[0]} already: {way_out}choose another --out,"
                " or replace the run, model or tokenizer that is there with --overwrite"
            )


def _check_no_run_within(out: Path) -> None:
    """Raises ValueError where a directory of other weights is a run by itself, or no directory."""
    for place in (out / name for name in OTHER_WEIGHTS):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(
                f"{place} is a file, where weights of the run would be: choose another --out, or"
                " move it away"
            )
        if (place / CHECKPOINT_FILE).exists():
            raise ValueError(
                f"{place} is a run of its own, where weights of this one would be: choose another"
                " --out"
            )


def remove_other_weights(out: Path) -> None:
    """Delete what a run that was replaced has left in its directories of other weights."""
    for place in (out / name for name in OTHER_WEIGHTS):
        for name in run_files(place):
            (place / name).unlink()
        with contextlib.suppress(OSError):  # there is none, or something of somebody's in it
            place.rmdir()


def replaced_files(out: Path) -> list[Path]:
    """The files that a new run in a directory would replace or delete."""
    places = (out, *(out / name for name in OTHER_WEIGHTS))
    return [place / name for place in places for name in run_files(place)]


def check_not_replaced(
    documents: Iterable[str | os.PathLike] | None, replaced: Collection[Path]
) -> None:
    """Raises ValueError for a text that is one of the files that would be replaced."""
    for path in documents or ():
        if any(file.exists() and os.path.samefile(path, file) for file in replaced):
            raise ValueError(
                f"{path} is a file that would be replaced: name another --out, or move the text"
            )


def absolute_model(name: str) -> str:
    """The same model from whatever working directory a run is resumed."""
    return os.path.abspath(name) if os.path.exists(name) else name


def run_files(directory: Path) -> list[str]:
    """The names of the files in a directory that a run would replace."""
    written = [name for name in RUN_FILES if os.path.lexists(directory / name)]
    return [*written, *model_files(directory), *tokenizer_files(directory)]
