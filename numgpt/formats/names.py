"""What a person calls a model (a path, a name, a hub id) -> the directory or file that holds it."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any

from numgpt.formats.catalogue import CATALOGUE, HUB_NAMES
from numgpt.messages import shown

SHIPPED = "shakespeare"  # the model that comes with numgpt
_PACKAGE = Path(__file__).parents[1]
# In an installed package and in a checkout.
WEIGHTS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.bpe", "chat_template.jinja"]
HUB_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
HUB_PICKLED_FILES = ["pytorch_model*.bin"]  # of repositories that have nothing else


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The model's directory or file, downloaded if a hub has it and huggingface_hub is there.

    Raises FileNotFoundError saying what to install or where to put the files, HubError where the
    hub fails.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"the model is {shown(name_or_path)}: name a directory, a file or a model")
    name = os.fspath(name_or_path)
    if not name:
        raise FileNotFoundError('the model is "": name a directory, a file or a model')
    if Path(name).exists():
        return Path(name)
    if "/" not in name and os.sep not in name:
        for weights in WEIGHTS:
            if (weights / name / "config.json").is_file():
                return weights / name
        if (models_directory() / name).is_dir():
            return models_directory() / name
        if name in CATALOGUE:
            raise FileNotFoundError(
                f"{name} is not on this machine yet: fetch it with  numgpt download {name}"
            )
    check_hub_name(name)
    return from_hub(name)


def home() -> Path:
    """numgpt's own directory: NUMGPT_HOME, else where the platform keeps caches.

    Raises FileNotFoundError for a user without a home directory.
    """
    try:
        if directory := os.environ.get("NUMGPT_HOME"):
            return Path(directory).expanduser()
        places = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
        variable, usual = places.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
        return Path(os.environ.get(variable) or Path.home() / usual) / "numgpt"
    except RuntimeError as error:  # of pathlib
        raise FileNotFoundError(f"{error}: set NUMGPT_HOME to a directory") from None


def models_directory() -> Path:
    """Where downloaded models lie, each in a directory of its name."""
    return home() / "models"


def downloaded() -> list[Path]:
    """The models that were downloaded, each the directory of its name."""
    try:
        return sorted(path for path in models_directory().iterdir() if path.name[0] != ".")
    except OSError:
        return []


def _suggestion(name: str) -> str:
    """A few words on known names: the one that is nearly this name, or all."""
    there = (path.name for path in downloaded())
    names = list(dict.fromkeys([SHIPPED, *CATALOGUE, *HUB_NAMES, *there]))
    near = difflib.get_close_matches(name, names, 1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"known names are {', '.join(names)}"


class HubError(OSError):
    """The hub did not deliver what was asked of it."""


def check_hub_name(name: str) -> None:
    """Raises FileNotFoundError for what is no name that the hub could have."""
    parts = name.split("/")
    one_file = len(parts) == 3 and name.endswith(".gguf")  # owner/repository/file.gguf
    if (
        not (len(parts) <= 2 or one_file)
        or not all(parts)
        or parts[0] in (".", "..", "~")
        or os.path.isabs(name)
    ):
        raise FileNotFoundError(f"there is no file or directory {name[:300] or repr(name)}")


def from_hub(name: str, **options: Any) -> Path:
    """Download from the hub into huggingface_hub's cache, or find it there; its environment
    variables apply.  The options are those of its snapshot_download.

    Raises FileNotFoundError where huggingface_hub is missing, HubError where the hub fails.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{shown(name)} is no file, directory or downloaded model ({_suggestion(name)}); to"
            " fetch it from the hub: pip install huggingface_hub, or put the model's files into a"
            " directory and name that"
        ) from None

    repository, _, file = name.rpartition("/") if name.count("/") == 2 else (name, "", "")

    def fetch(patterns: list[str]) -> Path:
        found = huggingface_hub.snapshot_download(repository, allow_patterns=patterns, **options)
        return Path(found)

    models: list[str] = []
    try:
        if file:
            return fetch([file]) / file
        directory = fetch(HUB_FILES)
        for others in (HUB_PICKLED_FILES, ["*.gguf"]):
            if any(path for weights in HUB_WEIGHTS for path in directory.glob(weights)):
                break
            if others == ["*.gguf"]:
                there = huggingface_hub.HfApi().list_repo_files(name)
                models = [path for path in there if path.endswith(".gguf") and "/" not in path]
            if len(models) < 2:
                directory = fetch(HUB_FILES + others)
    except Exception as error:  # whatever its HTTP library raises, the way out is the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"{shown(name)} is no directory, and the hub did not deliver it ({reason:.200}): check"
            f" the name ({_suggestion(name)}) and the connection, or put the model's"
            " files into a directory and name that"
        ) from None
    if len(models) > 1:  # GGUF repositories hold a model many times over: a person chooses
        raise FileNotFoundError(
            f"{name} on the hub holds several models: name one, such as {name}/{models[0]}"
            f" ({', '.join(models)})"
        )
    return directory
