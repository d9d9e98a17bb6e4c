"""Files that take the place of older ones whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once it is complete and on the disk.

    Until then `path` stays as it is, and what a kill leaves behind is a hidden .tmp file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself reaches the disk with its directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_leftovers(directory: Path) -> None:
    """Delete what writers that were killed have left in the directory."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Create the directory if need be.  Raises OSError where nothing can be written into it."""
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is a file: name a directory")
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".probe.{os.getpid()}.tmp"
    probe.write_bytes(b"\0")
    probe.unlink()


@contextlib.contextmanager
def writing_into(directory: Path) -> Iterator[None]:
    """Check early that the directory can be written; an error leaves no empty one behind."""
    check_writable(directory)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            directory.rmdir()  # does nothing where there is something in it
        raise
