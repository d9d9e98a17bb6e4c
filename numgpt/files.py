"""Files that take the place of older ones whole or not at all, and directories with one writer.

Whatever is written goes into a hidden temporary first, is flushed to the disk and then renamed, so
that a kill or a full disk leaves what was there before. Several files of a directory change
together: they wait, complete, in a hidden directory whose own renaming is the moment of the change;
moving them to their places after that is finished by whoever opens the directory next, should the
writer be killed in between.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from numgpt.reading import naming

TEMPORARY = ".numgpt-tmp"  # ends the names of what is being written, after the writer's process id
_TEMPORARY_NAME = re.compile(rf"\..*\.(\d+){re.escape(TEMPORARY)}", re.DOTALL)
COMPLETE = ".numgpt-complete"  # the directory of files that only have to be moved to their places
REMOVED = ".removed.json"  # in it: the names that are to go
LOCK_FILE = ".numgpt-lock"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once it is complete and on the disk.

    A link leads to the file that is replaced. Raises FileExistsError for a device or a pipe,
    OSError naming `path` where it can't be written; `path` then stays as it is.
    """
    if not os.fspath(path):
        raise FileNotFoundError('"" is no name: name a file')
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is a device or a pipe, which a file can't replace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with naming(path):
            try:
                file = open(temporary, "wb")  # noqa: SIM115 (closed below)
            except OSError as error:
                raise type(error)(error.errno, error.strerror, str(path)) from None
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that can't be written: what failed is said
            temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def replacing_together(
    directory: str | os.PathLike,
    remove: Collection[str] = (),
    check: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """A directory for new files, all of which take their places in `directory` at once.

    Those of the names in `remove` that are not among them are deleted at the same moment. An error
    leaves everything as it was; so does one that `check` raises, which is called at the last moment
    before the change. `directory` is created where it is missing, and locked meanwhile. Raises
    BlockingIOError naming the process that works in it, OSError where nothing can be written.
    """
    if not os.fspath(directory):
        raise ValueError('directory="": name a directory')
    directory = Path(directory)
    with _making(directory), _locked(directory):
        finish_replacing(directory)
        suffix = f".{os.getpid()}{TEMPORARY}"
        staged = Path(tempfile.mkdtemp(prefix=".", suffix=suffix, dir=directory))
        try:
            yield staged
            _complete(staged, remove, check)
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            if isinstance(error, OSError) and str(staged) in str(error.filename):
                where = str(error.filename).replace(str(staged), str(directory))
                raise type(error)(error.errno, error.strerror, where) from None
            raise
        finish_replacing(directory)


def _complete(staged: Path, remove: Collection[str], check: Callable[[], object]) -> None:
    """Flush all files of a staged directory, note what is to go, and give it its final name."""
    complete = staged.with_name(COMPLETE)
    gone = sorted(set(remove).difference(path.name for path in staged.iterdir()))
    with naming(staged):
        (staged / REMOVED).write_text(json.dumps(gone), encoding="utf-8")
    for name in (*gone, *(path.name for path in staged.iterdir())):
        if (place := staged.with_name(name)).is_dir():
            raise IsADirectoryError(f"{place} is a directory where a file belongs: move it away")
    for path in staged.iterdir():
        with naming(path), open(path, "r+b") as file:
            os.fsync(file.fileno())
    _sync_directory(staged)
    check()
    try:
        os.rename(staged, complete)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(complete)) from None


def finish_replacing(directory: str | os.PathLike) -> None:
    """Move complete files to their places, where a writer was killed before it had done so.

    Called before a directory is read. Raises OSError where it can't be written.
    """
    directory = Path(directory)
    complete = directory / COMPLETE
    if not complete.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # another process does the same
        names = _names_to_remove(complete)
        for path in complete.iterdir():
            if path.name != REMOVED:
                os.replace(path, directory / path.name)
        for name in names:
            (directory / name).unlink(missing_ok=True)
        _sync_directory(directory)
        (complete / REMOVED).unlink()
    with contextlib.suppress(FileNotFoundError):
        complete.rmdir()


def _names_to_remove(complete: Path) -> list[str]:
    """Raises ValueError for what numgpt has not written."""
    try:
        names = json.loads((complete / REMOVED).read_text(encoding="utf-8"))
        if all(isinstance(name, str) and name and Path(name).name == name for name in names):
            return names
    except FileNotFoundError:  # it goes last
        if not any(complete.iterdir()):
            raise
    except (ValueError, TypeError, RecursionError):
        pass
    raise ValueError(f"{complete} is not what numgpt has left there: move it away")


def is_ours(name: str) -> bool:
    """Whether a file of this name is a lock or a temporary of numgpt."""
    return name in (LOCK_FILE, COMPLETE) or _TEMPORARY_NAME.fullmatch(name) is not None


def sweep(directory: Path) -> None:
    """Delete the temporaries of writers that no longer run."""
    for path in directory.glob(f".*{TEMPORARY}"):
        match = _TEMPORARY_NAME.fullmatch(path.name)
        if match is None or _is_running(int(match[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


_locked_here: set[str] = set()  # the directories that this process has locked


def _locked(directory: Path) -> contextlib.AbstractContextManager[object]:
    """The lock of a directory, for as long as it is written into; this process may have it."""
    if os.path.realpath(directory) in _locked_here:
        return contextlib.nullcontext()
    return DirectoryLock(directory)


class DirectoryLock:
    """One process at a time works in a directory.

    The lock is the operating system's (flock), so that it ends with its process, however that ends;
    the file beside it only says who holds it.
    """

    def __init__(self, directory: str | os.PathLike):
        self._file: BinaryIO | None = None
        self.directory = Path(directory)
        self.path = self.directory / LOCK_FILE
        self._made: list[Path] = []

    @property
    def held(self) -> bool:
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock; the directory is created where it is missing.

        Raises BlockingIOError naming the process that has it, OSError where the directory can't be
        written.
        """
        if self.held:
            return
        self._made = _make(self.directory)
        try:
            while True:
                file = open(self.path, "a+b", buffering=0, opener=_open_itself)  # noqa: SIM115
                try:
                    self._lock(file)
                    if _is_file_at(file, self.path):
                        break
                except BaseException:
                    file.close()
                    raise
                file.close()  # its last holder has just deleted it
        except BaseException:
            _unmake(self._made)
            raise
        self._file = file
        self._place = os.path.realpath(self.directory)
        _locked_here.add(self._place)
        with contextlib.suppress(OSError):  # a full disk: then the lock holds without a name
            file.truncate(0)
            command = shlex.join(sys.orig_argv)
            command = command if len(command) <= 200 else f"{command[:199]}…"
            file.write(f"process {os.getpid()} ({command})".encode())

    def check(self) -> None:
        """Raises OSError where the directory is not the one any more that the lock was taken in."""
        if self._file is None or not _is_file_at(self._file, self.path):
            raise OSError(
                f"{self.directory} was moved away or replaced meanwhile: nothing is written into it"
            )

    def release(self) -> None:
        """Give it up; a directory that was created for it and is empty goes again."""
        if self._file is None:
            return
        file, self._file = self._file, None
        _locked_here.discard(self._place)
        # While it is held: nobody else has it.
        if os.name == "posix" and _is_file_at(file, self.path):
            self.path.unlink(missing_ok=True)
        file.close()
        if os.name != "posix":
            with contextlib.suppress(OSError):
                self.path.unlink()
        _unmake(self._made)

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def _lock(self, file: BinaryIO) -> None:
        try:
            _lock_file(file)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                warnings.warn(
                    f"{self.directory} can't be locked on this file system ({error.strerror}):"
                    " let no two runs use it at once",
                    stacklevel=4,
                )
                return
            holder = _holder(file) or "another process"
            raise BlockingIOError(
                f"{self.directory} is in use by {holder}: wait for it, stop it, or choose another"
                " directory"
            ) from None


def _open_itself(path: str, flags: int) -> int:
    """The file of this name, not one that a link leads to (on Windows, either)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _holder(file: BinaryIO) -> str:
    """What the process that has a lock wrote of itself; it may be about to."""
    for _ in range(20):
        file.seek(0)
        if holder := file.read(300).decode(errors="replace"):
            return holder
        time.sleep(0.01)
    return ""


def _lock_file(file: BinaryIO) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(1 << 30)  # beyond what others read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def _is_file_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_running(process: int) -> bool:
    """Whether a process of this id runs here."""
    if os.name != "posix":  # where the file of one that runs can't be deleted anyway
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _make(directory: Path) -> list[Path]:
    """Create a directory and those above it -> those that were missing, the deepest first."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    if os.path.lexists(directory) and not directory.is_dir():
        kind = "a file" if directory.exists() else "a link that leads nowhere"
        raise NotADirectoryError(f"{directory} is {kind}: name a directory")
    directory.mkdir(parents=True, exist_ok=True)
    return made


def _unmake(made: list[Path]) -> None:
    """Remove created directories again, as far as they are empty."""
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


@contextlib.contextmanager
def _making(directory: Path) -> Iterator[None]:
    """The directory exists within; an error leaves none behind that was not there."""
    made = _make(directory)
    try:
        yield
    except BaseException:
        _unmake(made)
        raise


def _sync_directory(directory: Path) -> None:
    """A rename reaches the disk with its directory."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
