"""The command line: one file a subcommand, which parses, calls and prints.

Text goes to stdout, everything else to stderr. An error is one line; the exit status is 2 for bad
usage or input, 1 for what failed on the way, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence

import numgpt  # first: chooses NumPy's kernels
from numgpt import launch
from numgpt.cli import chat, convert, download, evaluate, generate, info, tokenizer, train
from numgpt.formats.names import HubError
from numgpt.messages import one_line
from numgpt.training import TrainingError

BAD_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
SUBCOMMANDS = (generate, chat, train, evaluate, tokenizer, download, convert, info)
MENDS = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        launch.heed_interrupts()
        launch.open_closed_streams()
        return _run(arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
        print("\nnumgpt: interrupted", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows a ? for it
        stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    # of NumPy, where a training diverges: it is said
    warnings.simplefilter("ignore", RuntimeWarning)
    warnings.showwarning = lambda message, *_: print(f"numgpt: note: {message}", file=sys.stderr)
    try:
        if getattr(options, "threads", None) is not None:
            if options.threads < 1:
                raise ValueError(f"--threads {options.threads}: at least one thread is needed")
            numgpt.set_num_threads(options.threads)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, *BAD_PATH) as error:
        return _fail(error, 2)
    except MemoryError as error:
        return _fail(f"out of memory ({error}): use a smaller model, batch or context", 1)
    except (OSError, OverflowError, HubError, TrainingError) as error:
        return _fail(error, 2 if getattr(error, "errno", None) == errno.ENAMETOOLONG else 1)
    return 0


def _fail(error: object, status: int) -> int:
    if isinstance(error, OSError) and error.strerror is not None:
        where = error.filename
        if where is None and error.errno == errno.EBADF:
            where = "standard output"
        where = where if where is None or len(str(where)) < 300 else f"{str(where)[:300]}…"
        mend = MENDS.get(error.errno)
        error = ": ".join(str(part) for part in (where, error.strerror, mend) if part is not None)
    print(f"numgpt: error: {one_line(error)}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numgpt",
        description="GPT, whole, in NumPy.",
        epilog='example: numgpt generate "Once upon a time"',
    )
    parser.add_argument("--version", action="version", version=f"numgpt {numgpt.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        module.register(subparsers)
    return parser
