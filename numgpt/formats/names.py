"""What a person calls a model (a path, a name, a hub id) -> the directory or file that holds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

SHIPPED = "shakespeare"  # the model that comes with numgpt
ON_REQUEST = ("smollm2",)  # what `numgpt download` puts into the cache directory
_PACKAGE = Path(__file__).parents[1]
# In an installed package and in a checkout.
WEIGHTS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.bpe", "chat_template.jinja"]
HUB_PICKLED_FILES = ["pytorch_model*.bin"]  # of repositories that have nothing else


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The model's directory or file, downloaded if a hub has it and huggingface_hub is there.

    Raises FileNotFoundError saying what to install or where to put the files.
    """
    name = os.fspath(name_or_path)
    if Path(name).exists():
        return Path(name)
    if "/" not in name and os.sep not in name:
        for weights in WEIGHTS:
            if (weights / name / "config.json").is_file():
                return weights / name
        if (models_directory() / name).is_dir():
            return models_directory() / name
        if name in ON_REQUEST:
            raise FileNotFoundError(
                f"{name} is not on this machine yet: fetch it with  numgpt download {name}"
            )
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or parts[0] in (".", "..", "~") or os.path.isabs(name):
        raise FileNotFoundError(f"there is no file or directory {name}")
    return from_hub(name)


def home() -> Path:
    """numgpt's own directory: NUMGPT_HOME, else where the platform keeps caches.

    Raises FileNotFoundError for a user without a home directory.
    """
    try:
        return _home()
    except RuntimeError as error:  # of pathlib
        raise FileNotFoundError(f"{error}: set NUMGPT_HOME to a directory") from None


def _home() -> Path:
    if directory := os.environ.get("NUMGPT_HOME"):
        return Path(directory).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "numgpt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "numgpt"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "numgpt"


def models_directory() -> Path:
    """Where downloaded models lie, each in a directory of its name."""
    return home() / "models"


def from_hub(name: str, **options: Any) -> Path:
    """Download from the hub into huggingface_hub's cache, or find it there; its environment
    variables apply.  The options are those of its snapshot_download."""
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{name!r} is no file, directory or downloaded model; to fetch it from the hub:"
            " pip install huggingface_hub, or put the model's files into a directory and name that"
        ) from None

    def fetch(patterns: list[str]) -> Path:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **options))

    try:
        directory = fetch(HUB_FILES)
        if not any(directory.glob("*.safetensors")):
            directory = fetch(HUB_FILES + HUB_PICKLED_FILES)
        return directory
    except Exception as error:  # whatever its HTTP library raises, the way out is the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name!r} is no directory, and the hub didn't deliver it ({reason}): check the name"
            " and the connection, or put the model's files into a directory and name that"
        ) from None
