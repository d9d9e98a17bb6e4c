"""What comes before everything else where numgpt is the program that runs.

The command line needs a moment to import what it works with. In that moment nothing can catch
Ctrl-C yet, so it ends the process silently, as it does other programs. And a descriptor that
somebody closed (`numgpt … >&-`) would be given to the next file that is opened, which would then be
written over: it is opened first.
"""

from __future__ import annotations

import io
import os
import signal
import sys


def is_program() -> bool:
    """Whether this process is `numgpt …` or `python -m numgpt …`."""
    name = sys.argv[0] if sys.argv else ""  # "-m" while the package is being found
    return name == "-m" or os.path.basename(name) in ("numgpt", "numgpt.exe")


def let_interrupts_end_it() -> None:
    """Until `heed_interrupts`, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def heed_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_closed_streams() -> None:
    """Give the standard streams that are closed a null device: reading ends at once, what is
    written for a person goes nowhere, and what is written as a result is an error."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            # A result must not be lost in silence: its descriptor can't be written.
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            opened = os.open(os.devnull, flags)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
        raw = open(descriptor, mode + "b", buffering=0, closefd=False)  # noqa: SIM115
        # What can't be written fails at once, and is not tried again at the end.
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
