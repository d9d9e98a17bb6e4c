"""Reading files: what is wrong with one is said with its name."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numgpt.messages import shown, wrong_json

LFS_POINTER = b"version https://git-lfs"


def check_no_pointer(path: str | os.PathLike, start: bytes) -> None:
    """Raises ValueError for a file that begins as those do that Git leaves in place of large
    ones."""
    if start.startswith(LFS_POINTER):
        raise ValueError(
            f"{os.fspath(path)} is a Git LFS pointer, not the file itself: git lfs pull fetches it,"
            " or download it"
        )


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """What the system says of a write within names no file: it gets this one's name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from None


def sha256(path: Path) -> str:
    """Of a file of any size."""
    import hashlib  # loads OpenSSL, which nothing else at the start needs

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def about(place: object, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """What is wrong within, by errors of this kind, gets the name of the file, or of its part, in
    front."""
    try:
        yield
    except kind as error:
        raise ValueError(f"{place}: {str(error).removeprefix(f'{place}: ')}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """What a file of JSON says, by names.  Raises ValueError naming the file."""
    data = path.read_bytes()
    check_no_pointer(path, data)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        what = wrong_json(error, in_line=True)
        raise ValueError(f"{path} is not valid JSON ({what}): copy or download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {shown(value)}")
    return value
