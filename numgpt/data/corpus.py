"""Text files -> token ids on disk -> batches.

The tokens of a corpus lie in one file, two or four bytes each, and are memory-mapped: a corpus may
be larger than memory. The last part of them is for validation.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from numgpt.data.batch import Batch
from numgpt.data.finding import find_files
from numgpt.files import replacing
from numgpt.options import OptionError, OptionWarning, one_of, require, text, truth, whole
from numgpt.reading import naming, sha256
from numgpt.tokenizer import BaseTokenizer, Tokenizer
from numgpt.tokenizer.base import any_of
from numgpt.tokenizer.reading import read_text

TOKENS_FILE = "tokens.bin"
READ_AT_ONCE = 1 << 24  # bytes


def find_texts(data: str | list[str]) -> list[Path]:
    """The files that a path, a directory (with all the text below it) or a glob names, in order; or
    those of several.

    What a directory or a glob finds beside text is left out, and told. Raises FileNotFoundError
    where there is nothing, ValueError for what can be read only once.
    """

    def no_text(path: Path) -> str | None:
        return None if is_text(path) else "without UTF-8 text"

    files = find_files(data, no_text, "write the text to a file first", "no text in it")
    return [Path(file) for file in files]


def is_text(path: Path) -> bool:
    """Whether a file is UTF-8 text, from its beginning to its end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with naming(path), open(path, "rb") as file:
            while part := file.read(READ_AT_ONCE):
                if b"\0" in part:
                    return False
                decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def language_reference() -> str:
    """A corpus that every Python has: the language reference, as `help()` knows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


Documents = Sequence[Path] | None  # files; None: the language reference


def find_documents(data: str | list[str] | None) -> Documents:
    """The documents of a corpus."""
    return None if data is None else find_texts(data)


def read_documents(
    documents: Documents, changes: Counter[str] | None = None
) -> Iterator[Iterator[str]]:
    """Each document in parts that can be tokenised by themselves; see read_text."""
    if documents is None:
        yield iter([language_reference()])
    else:
        for file in documents:
            yield read_text(file, changes=changes)


@dataclass(frozen=True)
class TokensFile:
    """What tokens.bin is known by: a run goes on with the tokens it began with, or not at all."""

    dtype: str
    count: int
    sha256: str
    tokenizer: str = field(compare=False)  # the hash of the one that made them
    conversations: bool = False  # whether they are written in the chat format
    vocab_size: int = field(default=0, compare=False)  # of that tokenizer


@dataclass
class Corpus:
    """Tokens on disk, in two parts."""

    train: np.ndarray  # (n,) memory-mapped
    val: np.ndarray

    def batch(self, rng: np.random.Generator, batch_size: int, block_size: int) -> Batch:
        """Random windows of the training part; targets are the ids one place further."""
        return _windows(
            self.train, rng.integers(len(self.train) - block_size, size=batch_size), block_size
        )

    def validation_batches(self, count: int, batch_size: int, block_size: int) -> Iterator[Batch]:
        """The same `count` batches every time: windows at equal distances over the whole validation
        part."""
        last = len(self.val) - block_size - 1
        for batch in range(count):
            numbers = np.arange(batch * batch_size, (batch + 1) * batch_size)
            starts = numbers * last // max(1, count * batch_size - 1)
            yield _windows(self.val, starts, block_size)


def _windows(tokens: np.ndarray, starts: np.ndarray, block_size: int) -> Batch:
    windows = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B, T + 1)
    return Batch(windows[:, :-1], windows[:, 1:], len(starts) * block_size)


def encode_corpus(
    documents: Documents,
    tokenizer: BaseTokenizer,
    directory: str | os.PathLike,
    special_tokens: bool = False,
) -> TokensFile:
    """Encode a corpus into directory/tokens.bin.

    Documents are separated by the end-of-text token where the tokenizer has one. With
    special_tokens those in the text are meant; else they are ordinary text, and a warning says so,
    as of what read_text changes. Raises ValueError where the text can't be encoded.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    specials = any_of(frozenset(tokenizer.special_tokens))
    spelt: Counter[str] = Counter()
    changes: Counter[str] = Counter()
    count, digest = 0, hashlib.sha256()

    def write(ids: list[int]) -> None:
        nonlocal count
        tokens = np.array(ids, dtype)
        file.write(tokens.data)
        digest.update(tokens.data)
        count += len(ids)

    with replacing(Path(directory) / TOKENS_FILE) as file:
        for number, document in enumerate(read_documents(documents, changes)):
            if number and tokenizer.eos_token_id is not None:
                write([tokenizer.eos_token_id])
            for place, part in enumerate(document):
                if not special_tokens:
                    spelt.update(specials.findall(part))
                allowed = "all" if special_tokens else ()
                write(list(tokenizer.encode(part, allowed, continues=place > 0)))
    for what, count_of_files in changes.items():
        files = f"{count_of_files} files have" if count_of_files > 1 else "the text has"
        warnings.warn(f"{files} {what}", stacklevel=2)
    if spelt:
        token, times = spelt.most_common(1)[0]
        spells = "the text spells special tokens, {0} {1} times: there they are ordinary text;"
        mend = " {special_tokens:name} means them, or give each document a file of its own"
        warnings.warn(OptionWarning(spells + mend, token, times), stacklevel=2)
    hashes = digest.hexdigest(), hash_tokenizer(tokenizer)
    return TokensFile(dtype.str, count, *hashes, vocab_size=tokenizer.vocab_size)


def check_tokenizer(tokenizer: BaseTokenizer, tokens: TokensFile) -> None:
    """Raises ValueError for another tokenizer than the one that made the tokens."""
    as_large = tokens.vocab_size == tokenizer.vocab_size  # first: a hash takes its time
    if not as_large or hash_tokenizer(tokenizer) != tokens.tokenizer:
        raise ValueError(
            "its tokenizer is not the one that the run began with: put the tokenizer files of this"
            " run back"
        )


def check_length(tokens: TokensFile, val_fraction: float, block_size: int) -> int:
    """How many tokens are held out.  Raises ValueError where a part is too short for a batch."""
    held_out = int(tokens.count * val_fraction)
    if min(held_out, tokens.count - held_out) < block_size + 1:
        raise OptionError(
            "the text has {0} tokens, {1} of them for validation: both parts must be longer than"
            " {block_size}; bring more text or a smaller {block_size:name}, or cut it into more"
            " tokens, with a smaller {vocab_size:name} or {tokenizer}",
            tokens.count,
            held_out,
            block_size=block_size,
            tokenizer="char",
        )
    return held_out


def open_corpus(
    directory: str | os.PathLike, tokens: TokensFile, val_fraction: float, block_size: int
) -> Corpus:
    """Map directory/tokens.bin.  Raises OptionError where a part is too short for a batch."""
    try:
        held_out = check_length(tokens, val_fraction, block_size)
    except OptionError as error:
        raise error.after(Path(directory) / TOKENS_FILE) from None
    mapped = open_tokens(directory, tokens)
    return Corpus(mapped[: tokens.count - held_out], mapped[tokens.count - held_out :])


def open_tokens(directory: str | os.PathLike, tokens: TokensFile) -> np.ndarray:
    """Map directory/tokens.bin."""
    return np.memmap(Path(directory) / TOKENS_FILE, np.dtype(tokens.dtype), mode="r")


def check_tokens(
    directory: str | os.PathLike, expected: TokensFile, encode: Callable[[], TokensFile]
) -> None:
    """See that directory/tokens.bin is the file that is expected; where it is missing, `encode`
    writes it again.  Raises ValueError, and leaves none, where the data have become others."""
    path = Path(directory) / TOKENS_FILE
    size = expected.count * np.dtype(expected.dtype).itemsize
    if not path.exists():
        if encode() == expected:
            return
        path.unlink()
        wrong = "is missing, and the data make other tokens than the run began with"
    elif path.stat().st_size != size:
        wrong = f"has {path.stat().st_size} bytes, the run began with {size}"
    elif sha256(path) != expected.sha256:
        wrong = "holds other tokens than the run began with"
    else:
        return
    raise ValueError(
        f"{path} {wrong}: put that file back, or delete it to encode the same data again; for other"
        " data start a new run, from these weights if you like"
    )


def hash_tokenizer(tokenizer: BaseTokenizer) -> str:
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
        if tokenizer.add_prefix_space:
            digest.update(b"add_prefix_space")
        for left, right in tokenizer.merges:
            digest.update(left + b" " + right + b"\n")
    return digest.hexdigest()


def tokens_file_from(fields: object) -> TokensFile:
    """A TokensFile from a checkpoint.  Raises ValueError or TypeError for anything else."""
    tokens = TokensFile(**fields)  # type: ignore[arg-type]
    require(tokens, one_of(("<u2", "<u4")), "dtype")
    require(tokens, whole(0, (1 << 53) - 1), "count", "vocab_size")
    require(tokens, text(), "sha256", "tokenizer")
    require(tokens, truth(), "conversations")
    return tokens
