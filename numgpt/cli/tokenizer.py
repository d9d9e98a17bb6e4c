"""numgpt tokenizer: train one, encode text, decode ids."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from numgpt.cli.common import (
    add_command,
    add_flags,
    check_directory_name,
    read_stdin,
    text_argument,
)
from numgpt.files import DirectoryLock, finish_replacing, replacing_together, sweep
from numgpt.formats import SHIPPED, load_tokenizer
from numgpt.messages import shown, tell
from numgpt.tokenizer import Tokenizer
from numgpt.tokenizer.base import END_OF_TEXT, TOKENIZER_FILES, tokenizer_files
from numgpt.tokenizer.pattern import PATTERNS
from numgpt.training.checkpoint import CHECKPOINT_FILE
from numgpt.training.starting import check_not_replaced

LONGEST_ID = 30  # digits


def register(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = add_command(
        subparsers,
        "tokenizer",
        "train a BPE tokenizer, encode text, decode ids",
        "numgpt tokenizer train book.txt --vocab-size 1024 --out book-tokenizer\n"
        'numgpt tokenizer encode "To be, or not to be"\n'
        "numgpt tokenizer encode --tokenizer book-tokenizer - < book.txt",
        lambda options: parser.error("choose one of train, encode, decode"),
    )
    actions = parser.add_subparsers(metavar="ACTION")

    train = add_command(
        actions,
        "train",
        "learn a vocabulary from text files",
        "numgpt tokenizer train book.txt --vocab-size 1024 --out book-tokenizer",
        run_train,
    )
    train.add_argument("files", nargs="+", metavar="FILE", help="text files")
    needed = {
        "--vocab-size N": "tokens in all, from 257 up",
        "--out DIR": "where to write the tokenizer's files",
    }
    add_flags(train, needed, required=True)
    add_flags(train, {"--overwrite": "replace a tokenizer that DIR holds already"})
    special = f"special token; repeatable (default {END_OF_TEXT})"
    add_flags(train, {"--special TEXT": special}, action="append")
    train.add_argument(
        "--pattern",
        default="gpt2",
        choices=PATTERNS,
        help="how text is cut before merging (default gpt2)",
    )
    add_flags(train, {"--min-frequency N": "merge no rarer pair (default 2)"}, default=2)

    encode = add_command(
        actions,
        "encode",
        "print the ids of a text",
        'numgpt tokenizer encode "To be, or not to be"',
        run_encode,
    )
    encode.add_argument("text", nargs="?", help="the text; - or a pipe: standard input")
    add_flags(encode, {"--special": "special tokens in the text count as such"})

    decode = add_command(
        actions, "decode", "print the text of ids", "numgpt tokenizer decode 15 42 7", run_decode
    )
    decode.add_argument("ids", nargs="*", help="token ids; none: standard input")

    which = f"a directory or file, a name or a hub id (default {SHIPPED})"
    for action in (encode, decode):
        add_flags(action, {"--tokenizer T": which}, default=SHIPPED)


def run_train(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    check_directory_name("--out", options.out)
    out, paths = Path(options.out), [Path(file) for file in options.files]
    with DirectoryLock(out):
        sweep(out)
        finish_replacing(out)
        _check_free(options)
        if all(not path.is_fifo() and path.stat().st_size == 0 for path in paths):
            raise ValueError(f"{options.files[0]} is empty: there is nothing to learn from")
        check_not_replaced(paths, [out / name for name in tokenizer_files(out)])
        asked = options.vocab_size, options.special or [END_OF_TEXT], options.min_frequency
        with replacing_together(out, TOKENIZER_FILES, lambda: _check_free(options)) as staged:
            tokenizer = Tokenizer.train(paths, *asked, sys.stderr.isatty(), options.pattern)
            tokenizer.save_pretrained(staged)
    seconds = time.perf_counter() - began
    tell(f"{tokenizer.vocab_size} tokens, trained in {seconds:.1f} s, written to {options.out}")
    if tokenizer.vocab_size < options.vocab_size:
        tell(
            f"fewer than {options.vocab_size}: no other pair occurs {options.min_frequency}"
            " times in this text"
        )


def _check_free(options: argparse.Namespace) -> None:
    """Raises ValueError where the directory holds a tokenizer that is not to be replaced."""
    if os.path.lexists(os.path.join(options.out, CHECKPOINT_FILE)):
        raise ValueError(
            f"{options.out} holds a training run ({CHECKPOINT_FILE}), which goes on with its own"
            " tokenizer only: name another --out"
        )
    if not options.overwrite and (there := tokenizer_files(options.out)):
        raise ValueError(
            f"{options.out} holds a tokenizer already ({there[0]}): name another --out, or replace"
            " it with --overwrite"
        )


def run_encode(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    ids = tokenizer.encode(
        text_argument(options.text, "text"), allowed_special="all" if options.special else ()
    )
    print(*ids)
    tell(f"{len(ids)} tokens")


def run_decode(options: argparse.Namespace) -> None:
    words = options.ids or read_stdin().replace(",", " ").split()
    tokenizer = load_tokenizer(options.tokenizer)
    for word in words:
        if not word.isdecimal() or len(word) > LONGEST_ID:
            raise ValueError(
                f"{shown(word)} is not a token id: give whole numbers, separated by spaces"
            )
    end = b"\n" if sys.stdout.isatty() else b""  # a file gets the very bytes
    sys.stdout.buffer.write(tokenizer.decode_bytes([int(word) for word in words]) + end)
