"""What a person calls a model (a path, a shipped name, a hub id) -> the directory that holds it."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = "shakespeare"  # the model that comes with numgpt
_PACKAGE = Path(__file__).parents[1]
# In an installed package and in a checkout.
WEIGHTS = (_PACKAGE / "weights", _PACKAGE.parent / "weights")
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.bpe"]


def resolve(name_or_path: str | os.PathLike) -> Path:
    """The model's directory, downloaded if need be.

    Raises FileNotFoundError saying what to install or where to put the files.
    """
    name = os.fspath(name_or_path)
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise NotADirectoryError(f"{name} is a file: name the directory of a model")
    for weights in WEIGHTS:
        if "/" not in name and os.sep not in name and (weights / name / "config.json").is_file():
            return weights / name
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or parts[0] in (".", "..", "~") or os.path.isabs(name):
        raise FileNotFoundError(f"there is no directory {name}")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """Download from the hub into huggingface_hub's cache, or find it there; its environment
    variables apply."""
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"{name!r} is no directory and not shipped ({SHIPPED} is); to fetch it from the hub:"
            " pip install huggingface_hub, or put config.json, model.safetensors and the tokenizer"
            " files into a directory and name that"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # whatever its HTTP library raises, the way out is the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{name!r} is no directory, and the hub didn't deliver it ({reason}): check the name"
            " and the connection, or put the model's files into a directory and name that"
        ) from None
