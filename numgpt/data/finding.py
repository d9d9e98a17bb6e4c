"""The files that paths, directories and globs name; what is left out of them is told, by reason."""

from __future__ import annotations

import glob
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from numgpt.options import OptionError, OptionFileError

CHECKPOINT_FILE = "checkpoint.safetensors"  # by which a run is known
PROMPTS_FILE = "prompts.jsonl"  # of a run that continues them: with what it is rewarded for
REFERENCE_FILE = "reference.npz"  # what the model that a run began as makes of each completion
STANDARD_INPUT = "-"
OTHER_WEIGHTS = ("best", "last")  # directories in that of a run: the weights that it does not hold
MOST_NAMED = 3  # files


def find_files(
    data: str | list[str], unwanted: Callable[[Path], str | None], only_once: str, nothing: str
) -> list[str]:
    """The files that a path, a directory (with all that is below it) or a glob names, in order; or
    those of several, in the order of these.

    `unwanted` says why a file that a directory or a glob finds is left out, or None; hidden files,
    and what runs have written, are left out too. A warning tells all of them. Raises
    FileNotFoundError, saying `nothing`, where no file is left, ValueError for a pipe or a device,
    which can be read only once, with `only_once` as what to do.
    """
    if isinstance(data, list):
        return [file for one in data for file in find_files(one, unwanted, only_once, nothing)]
    if Path(data).is_file():
        return [data]
    directory = bool(data) and os.path.isdir(data)
    if data and os.path.exists(data) and not directory:
        once = "{data} is a pipe or a device, which can be read only once: {0}"
        raise OptionError(once, only_once, data=data)
    paths = Path(data).rglob("*") if directory else map(Path, glob.glob(data, recursive=True))
    left_out: defaultdict[str, list[Path]] = defaultdict(list)
    files = []
    for path in sorted(path for path in paths if path.is_file()):
        place = path.relative_to(data) if directory else path
        if directory and any(part.startswith(".") for part in place.parts):
            reason: str | None = "hidden"
        elif _is_of_a_run(path):
            reason = "of a run"
        else:
            reason = unwanted(path)
        if reason is None:
            files.append(str(path))
        else:
            left_out[reason].append(place)
    if left_out:
        told = "; ".join(_counted(reason, paths) for reason, paths in left_out.items())
        warnings.warn(f"{data}: left out: {told}", stacklevel=2)
    if not files:
        raise OptionFileError("{data}: no such file, directory or glob, or {0}", nothing, data=data)
    return files


def _is_of_a_run(path: Path) -> bool:
    above = path.parent.parent if path.parent.name in OTHER_WEIGHTS else path.parent
    return (path.parent / CHECKPOINT_FILE).exists() or (above / CHECKPOINT_FILE).exists()


def _counted(reason: str, paths: list[Path]) -> str:
    names = ", ".join(str(path) for path in paths[:MOST_NAMED])
    more = f" and {len(paths) - MOST_NAMED:,} more" if len(paths) > MOST_NAMED else ""
    return f"{len(paths):,} {reason} ({names}{more})"


def absolute(data: str | list[str]) -> str | list[str]:
    """The same data from whatever working directory a run is resumed."""
    if isinstance(data, list):
        return [str(absolute(one)) for one in data]
    return os.path.abspath(data) if data != STANDARD_INPUT else data


def absolute_model(name: str) -> str:
    """The same model from whatever working directory a run is resumed."""
    return os.path.abspath(name) if os.path.exists(name) else name
