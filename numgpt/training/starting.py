"""How a run begins: tokenizer, model and tokens, put into its directory all at once.

From then on it is a run that can be resumed, at any instant; before, nothing is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numgpt.data.corpus import TOKENS_FILE
from numgpt.data.finding import OTHER_WEIGHTS, PROMPTS_FILE, REFERENCE_FILE
from numgpt.files import finish_replacing, replacing_together
from numgpt.formats.huggingface import WEIGHTS_FILE, model_files
from numgpt.formats.peft import ADAPTER_FILES
from numgpt.messages import quoted, shown
from numgpt.options import OptionError, require
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer.base import tokenizer_files
from numgpt.training.checkpoint import CHECKPOINT_FILE, RunState, save_checkpoint
from numgpt.training.config import RunConfig, from_anywhere, options_of
from numgpt.training.log import CURVE_FILE, DAMAGED_LOG_FILE, LOG_FILE
from numgpt.training.records import Callback

RUN_FILES = (
    *(CHECKPOINT_FILE, TOKENS_FILE, PROMPTS_FILE, REFERENCE_FILE),
    *(LOG_FILE, DAMAGED_LOG_FILE, CURVE_FILE, *ADAPTER_FILES),
)


def start_run(
    config: RunConfig,
    out: Path,
    prepare: Callable[..., tuple[RunState, BaseTokenizer]],
    report: Callback,
    overwrite: bool = False,
) -> tuple[RunState, BaseTokenizer]:
    """Write a new run into the directory `out`: what `prepare` stages, and a checkpoint of step 0;
    -> its state and tokenizer.

    With `overwrite` it takes the place of the run or model that is there, in the same moment.
    Raises ValueError or OSError for what is known to fail later, and for a directory that holds
    something already; then everything is as it was.
    """
    check_free = partial(_check_free, out, overwrite)
    finish_replacing(out)
    check_free()
    with replacing_together(out, run_files(out), check_free) as staged:
        state, tokenizer = prepare(config, out, staged, report)
        config.cut_warmup()
        save_checkpoint(staged, state)
    remove_other_weights(out)
    return state, tokenizer


def change_options(config: RunConfig, changes: Mapping[str, Any], out: Path) -> None:
    """Change options of a run that goes on.  Raises OptionError for one that there is not, for one
    that cannot change any more, and for what an option can't be."""
    known = options_of(type(config))
    for name, value in changes.items():
        if name not in known or (value is None and getattr(config, name) is not None):
            raise OptionError("{0}={1} is not an option of such a run", name, shown(value))
        require(SimpleNamespace(**{name: value}), known[name].metadata["rule"], name)
        value = from_anywhere(config, name, value)
        began = _listed(getattr(config, name))
        if name not in config.may_change and _listed(value) != began:
            mend = "start a new run in another {out:name}"
            mend = "raise {steps:name} instead" if name == "epochs" else mend
            raise OptionError(
                f"{{{name}}}: the run in {{0}} began with {{1}}, and that cannot change; {mend}",
                out,
                shown(began),
                **{name: _listed(value)},
            )
        setattr(config, name, value)
    config.validate()
    if changes:
        config.cut_warmup()


def _listed(value: Any) -> Any:
    """One file of data is a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _check_free(out: Path, overwrite: bool) -> None:
    """Raises ValueError or OSError where a directory of other weights is a run by itself, or no
    directory; and unless they are overwritten where a run, a model or a tokenizer is there."""
    others = [out / name for name in OTHER_WEIGHTS]
    for place in others:
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(
                f"{place} is a file, where weights of the run would be: move it away, or choose"
                " another directory"
            )
        if (place / CHECKPOINT_FILE).exists():
            raise OptionError(
                "{0} is a run of its own, where weights of this one would be: choose another"
                " {out:name}",
                place,
            )
    for place in () if overwrite else (out, *others):
        if there := run_files(place):
            way_out = "continue the run with {resume:name} {2}, " * (CHECKPOINT_FILE in there)
            telling = [name for name in (CHECKPOINT_FILE, WEIGHTS_FILE) if name in there]
            raise OptionError(
                f"{{0}} holds a {{1}} already: {way_out}choose another {{out:name}}, or replace the"
                " run, model or tokenizer that is there with {overwrite:name}",
                place,
                (telling or there)[0],
                quoted(place),
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
            raise OptionError(
                "{0} is a file that would be replaced: name another {out:name}, or move the text",
                path,
            )


def run_files(directory: Path) -> list[str]:
    """The names of the files in a directory that a run would replace."""
    written = [name for name in RUN_FILES if os.path.lexists(directory / name)]
    return [*written, *model_files(directory), *tokenizer_files(directory)]
