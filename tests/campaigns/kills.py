"""Kills at every point where a file system call is made: nothing is lost, whatever the moment.

The tests try each point of short runs. `kill_at` works by forking, and needs POSIX.
"""

import builtins
import io
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

CALLS = (
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "mkdir"),
    (builtins, "open"),
    (io, "open"),
    (pathlib.Path, "unlink"),
)
KILLED = 77


def kill_at(point: int, work: Callable[[], object]) -> bool:
    """Do the work in a process of its own, which ends without a word at the given call to the file
    system, counted from 0 -> whether it came that far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads that sleep
        process = os.fork()
    if process == 0:
        _work_and_die(point, work)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, KILLED), f"the process ended with {status}"
    return status == KILLED


def _work_and_die(point: int, work: Callable[[], object]) -> None:
    status = 1
    try:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        left = point

        def counted(call: Callable) -> Callable:
            def call_or_die(*arguments, **options):
                nonlocal left
                if left == 0:
                    os._exit(KILLED)
                left -= 1
                return call(*arguments, **options)

            return call_or_die

        for owner, name in CALLS:
            setattr(owner, name, counted(getattr(owner, name)))
        work()
        status = 0
    finally:
        os._exit(status)


def kill_everywhere(
    prepare: Callable[[], object],
    work: Callable[[], object],
    check: Callable[[int], object],
    step: int = 1,
    most: int = 1000,
) -> int:
    """At each point, or each `step`th: prepare, work up to there, check what is left -> the number
    of points."""
    for point in range(0, most, step):
        prepare()
        if not kill_at(point, work):
            return point
        check(point)
    raise AssertionError(f"more than {most} points")
