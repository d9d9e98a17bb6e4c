"""The command line: one file a subcommand, which parses, calls and prints.

Text goes to stdout, everything else to stderr. An error is one line; the exit status is 2 for bad
usage or input, 1 for what failed on the way, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import numgpt  # first: chooses NumPy's kernels
from numgpt import launch
from numgpt.cli import (
    chat,
    convert,
    download,
    evaluate,
    explain,
    generate,
    info,
    lessons,
    tokenizer,
    train,
    tune,
)
from numgpt.cli.common import in_flags, tell_note
from numgpt.formats.names import HubError
from numgpt.messages import one_line, tell
from numgpt.training import TrainingError

BAD_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# In the order in which --help has them.
SUBCOMMANDS = [generate, chat, train, tune, evaluate, explain]
SUBCOMMANDS += [lessons, tokenizer, download, convert, info]
MENDS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose another disk")
MENDS |= dict.fromkeys((errno.EACCES, errno.EPERM), "choose a place that you may use")
MENDS |= {
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name, a part of it is a file",
    errno.EISDIR: "name a file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        launch.heed_interrupts()
        launch.open_closed_streams()
        with launch.ending_in_order():
            return _run(arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
        tell("\nnumgpt: interrupted")
        return 130
    except launch.Ended as ended:
        tell(f"\nnumgpt: {ended}")
        return ended.status


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows a ? for it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # of NumPy, where a training diverges: it is said
    warnings.simplefilter("ignore", RuntimeWarning)
    options = argparse.Namespace()
    warnings.showwarning = lambda message, *_, **__: tell_note(message, options)
    try:
        _, unknown = _parser().parse_known_args(arguments, options)
        if unknown:
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        if getattr(options, "threads", None) is not None:
            numgpt.set_num_threads(options.threads)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, *BAD_PATH) as error:
        return _fail(in_flags(error, options), 2)
    except MemoryError as error:
        return _fail(f"out of memory ({error}): use a smaller model, batch or context", 1)
    except (OSError, ArithmeticError, HubError, TrainingError) as error:
        if isinstance(error, TrainingError) and error.__cause__ is not None:  # of a user's function
            tell("".join(traceback.format_exception(error.__cause__)).rstrip())
        too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        return _fail(in_flags(error, options), 2 if too_long else 1)
    return 0


def _fail(error: object, status: int) -> int:
    if isinstance(error, OSError) and error.strerror is not None:
        # What writes a file names it.
        where = "standard output" if error.filename is None else str(error.filename)
        where = where if len(where) < 300 else f"{where[:300]}…"
        error = ": ".join(filter(None, (where, error.strerror, MENDS.get(error.errno or 0))))
    tell(f"numgpt: error: {one_line(error)}")
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and lets no failing output pass."""

    def error(self, message: str) -> Any:
        tell(f"{self.prog}: error: {one_line(message)} ({self.prog} --help)")
        raise SystemExit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)
        (file or sys.stderr).flush()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="numgpt",
        description="GPT, whole, in NumPy.",
        epilog='example: numgpt generate "Once upon a time"',
    )
    parser.add_argument("--version", action="version", version=f"numgpt {numgpt.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        module.register(subparsers)
    return parser
