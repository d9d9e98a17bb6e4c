"""Text files -> token ids on disk -> batches.

The tokens of a corpus lie in one file, two or four bytes each, and are memory-mapped: a corpus may
be larger than memory. The last part of them is for validation.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numgpt.runtime.files import replacing
from numgpt.tokenizer import BaseTokenizer, Tokenizer
from numgpt.tokenizer.reading import read_text

TOKENS_FILE = "tokens.bin"
DESCRIPTION_FILE = "tokens.json"


def find_files(data: str | list[str]) -> list[Path]:
    """The files that a path, a directory (with all below it) or a glob names, in order; or those of
    several.

    Raises FileNotFoundError where there are none.
    """
    if isinstance(data, list):
        return [file for one in data for file in find_files(one)]
    path = Path(data)
    if path.is_file():
        return [path]
    if path.is_dir() and data:
        found = [match for match in path.rglob("*") if not _is_hidden(match.relative_to(path))]
    else:
        found = [Path(match) for match in glob.glob(data, recursive=True)]
    # A directory may hold runs: what they wrote is no text to train on.
    files = sorted(
        file for file in found if file.is_file() and not (file.parent / DESCRIPTION_FILE).exists()
    )
    if not files:
        raise FileNotFoundError(
            f"--data {data or repr(data)}: no such file, directory or glob, or no text in it"
        )
    return files


def absolute(data: str | list[str] | None) -> str | list[str] | None:
    """The same data from whatever working directory a run is resumed."""
    if isinstance(data, list):
        return [os.path.abspath(one) if one else one for one in data]
    return os.path.abspath(data) if data else data


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def language_reference() -> str:
    """A corpus that every Python has: the language reference, as `help()` knows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_documents(data: str | list[str] | None) -> Iterator[Iterator[str]]:
    """The documents of a corpus, each in parts that can be tokenised by themselves."""
    if data is None:
        yield iter([language_reference()])
    else:
        for file in find_files(data):
            yield read_text(file)


@dataclass
class Corpus:
    """Tokens on disk, in two parts."""

    train: np.ndarray  # (n,) memory-mapped
    val: np.ndarray

    def batch(
        self, rng: np.random.Generator, batch_size: int, block_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Random windows of the training part.  -> ids (B, T), targets (B, T): the ids one place
        further."""
        return _windows(
            self.train, rng.integers(len(self.train) - block_size, size=batch_size), block_size
        )

    def validation_batches(
        self, count: int, batch_size: int, block_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same `count` batches every time: windows at equal distances over the whole validation
        part."""
        starts = np.linspace(0, len(self.val) - block_size - 1, count * batch_size).astype(np.int64)
        for first in range(0, len(starts), batch_size):
            yield _windows(self.val, starts[first : first + batch_size], block_size)


def _windows(
    tokens: np.ndarray, starts: np.ndarray, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    windows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def prepare_corpus(
    data: str | list[str] | None,
    tokenizer: BaseTokenizer,
    directory: str | os.PathLike,
    val_fraction: float,
    block_size: int,
    resuming: bool = False,
) -> Corpus:
    """Encode the corpus into directory/tokens.bin, unless it is there already, and map it.

    Documents are separated by the end-of-text token where the tokenizer has one. A run that is
    resumed goes on with the tokens it began with, whatever has become of the files. Raises
    ValueError where the text is too short for the block size, or can't be encoded.
    """
    directory = Path(directory)
    path, description_path = directory / TOKENS_FILE, directory / DESCRIPTION_FILE
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    description = {"dtype": dtype.str, "tokenizer": _identity(tokenizer)}
    try:
        found = json.loads(description_path.read_text()) if path.is_file() else {}
    except (OSError, ValueError):
        found = {}
    if not resuming or not found.items() >= description.items():
        description["source"] = _fingerprint(data)
        if found != description:
            description_path.unlink(missing_ok=True)  # it must never describe other tokens
            with replacing(path) as file:
                for number, document in enumerate(read_documents(data)):
                    if number and tokenizer.eos_token_id is not None:
                        file.write(np.array([tokenizer.eos_token_id], dtype).data)
                    for part in document:
                        file.write(np.array(tokenizer.encode(part), dtype).data)
            with replacing(description_path) as file:
                file.write(json.dumps(description).encode())
    count = path.stat().st_size // dtype.itemsize
    held_out = int(count * val_fraction)
    if min(held_out, count - held_out) < block_size + 1:
        raise ValueError(
            f"the text has {count} tokens, {held_out} of them for validation: both parts must be"
            f" longer than block_size={block_size}; bring more text or a smaller block_size"
        )
    tokens = np.memmap(path, dtype, mode="r")
    return Corpus(tokens[: count - held_out], tokens[count - held_out :])


def _fingerprint(data: str | list[str] | None) -> str:
    """Changes when the corpus's files do."""
    if data is None:
        return hashlib.sha256(language_reference().encode()).hexdigest()
    stats = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for file in find_files(data)
    ]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _identity(tokenizer: BaseTokenizer) -> str:
    """Changes when any token does, or how a text is cut into them."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    for id in range(tokenizer.vocab_size):
        try:
            digest.update(tokenizer.token_to_bytes(id) + b"\n")
        except ValueError:  # a hole in the vocabulary
            digest.update(b"\n\n")
    if isinstance(tokenizer, Tokenizer):
        pattern, normalizer = tokenizer.pattern.name, tokenizer.normalizer
        if (pattern, normalizer, tokenizer.ignore_merges) != ("gpt2", None, False):
            digest.update(f"{pattern} {normalizer} {tokenizer.ignore_merges}".encode())
    return digest.hexdigest()
