"""How a run begins: tokenizer, model and tokens, put into its directory all at once.

From then on it is a run that can be resumed, at any instant; before, nothing is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from numgpt.data.corpus import TOKENS_FILE
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


def begin_run(
    config: ConfigT, out: Path, prepare: Prepare[ConfigT], overwrite: bool = False
) -> None:
    """Write a new run into the directory `out`: what `prepare` stages, and a checkpoint of step 0.

    With `overwrite` it takes the place of the run or model that is there, in the same moment.
    Raises ValueError or OSError for what is known to fail later, and for a directory that holds
    something already; then everything is as it was.
    """

    def check_free() -> None:
        if not overwrite:
            _check_free(out)

    finish_replacing(out)
    check_free()
    with replacing_together(out, run_files(out), check_free) as staged:
        state = prepare(config, out, staged)
        config.cut_warmup()
        save_checkpoint(staged, state)


def _check_free(out: Path) -> None:
    """Raises ValueError where a directory holds a run, a model or a tokenizer."""
    if there := run_files(out):
        resume = f"continue the run with --resume {quoted(out)}, "
        way_out = resume if CHECKPOINT_FILE in there else ""
        telling = [name for name in (CHECKPOINT_FILE, WEIGHTS_FILE) if name in there]
        raise ValueError(
            f"{out} holds a {(telling or there)[0]} already: {way_out}choose another --out, or"
            " replace the run, model or tokenizer that is there with --overwrite"
        )


def check_not_replaced(
    documents: Iterable[str | os.PathLike] | None, out: Path, names: list[str]
) -> None:
    """Raises ValueError for a text that is one of the files that would be replaced."""
    for path in documents or ():
        if any((out / name).exists() and os.path.samefile(path, out / name) for name in names):
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
