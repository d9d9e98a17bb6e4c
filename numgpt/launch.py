"""What comes before everything else where numgpt is the program that runs.

The command line needs a moment to import what it works with. In that moment nothing can catch
Ctrl-C yet, so it ends the process silently, as it does other programs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


def is_program() -> bool:
    """Whether this process is `numgpt …` or `python -m numgpt …`."""
    name = sys.argv[0] if sys.argv else ""  # "-m" while the package is being found
    return name == "-m" or os.path.basename(name) in ("numgpt", "numgpt.exe")


def let_interrupts_end_it() -> None:
    """Until `heed_interrupts`, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def warn_in_one_line() -> None:
    """Warnings without the line of source that they come from."""
    warnings.formatwarning = lambda message, *_, **__: f"numgpt: note: {message}\n"


def heed_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Ended(SystemExit):
    """A polite kill, or the end of the terminal: what is held is given up on the way out."""

    def __init__(self, sign: int):
        super().__init__(f"ended by {signal.Signals(sign).name}")
        self.status = 128 + sign


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Ended within.  Where nohup has the terminal's end ignored, it stays
    so."""

    def end(sign: int, frame: Any) -> None:
        for other in heeded:
            signal.signal(other, signal.SIG_IGN)  # one is enough
        raise Ended(sign)

    signs = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    in_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    heeded = [s for s in signs if in_main and signal.getsignal(s) is signal.SIG_DFL]
    for sign in heeded:
        signal.signal(sign, end)
    try:
        yield
    finally:
        for sign in heeded:
            signal.signal(sign, signal.SIG_DFL)


def open_closed_streams() -> None:
    """A standard stream that somebody closed (`numgpt … >&-`) reads nothing, and takes what nobody
    sees."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
