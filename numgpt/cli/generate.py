"""numgpt generate: continue a prompt."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import Any

from numgpt.cli.common import (
    add_command,
    add_model,
    add_sampling,
    add_threads,
    sampling_options,
    text_argument,
    whole,
)
from numgpt.formats import load
from numgpt.generation import generate_each
from numgpt.messages import printable, shown, tell
from numgpt.tokenizer import StreamDecoder

NEW_TOKENS = 200


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "generate",
        "continue a text",
        'numgpt generate "Once upon a time" --max-length 30 --num-return-sequences 5',
        run,
    )
    parser.add_argument(
        "prompt", nargs="*", help="the text to continue; - or a pipe: standard input"
    )
    add_model(parser)
    parser.add_argument(
        "--max-new-tokens", type=whole, metavar="N", help=f"tokens to add (default {NEW_TOKENS})"
    )
    parser.add_argument(
        "--max-length", type=whole, metavar="N", help="tokens in all, the prompt's included"
    )
    parser.add_argument(
        "--min-new-tokens", type=whole, default=0, metavar="N", help="no end of text before these"
    )
    parser.add_argument(
        "--num-return-sequences",
        "-n",
        type=whole,
        default=1,
        metavar="N",
        help="continuations (default 1)",
    )
    parser.add_argument(
        "--no-slide",
        dest="slide",
        action="store_false",
        help="end where the model's context is full (default: go on from its newer half)",
    )
    add_sampling(parser, temperature=0.8)
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end after this text; repeatable",
    )
    parser.add_argument(
        "--ban", action="append", default=[], metavar="TEXT", help="never write this; repeatable"
    )
    add_threads(parser)


def run(options: argparse.Namespace) -> None:
    _check(options)
    prompt = text_argument(" ".join(options.prompt) if options.prompt else None, "prompt")
    model, tokenizer = load(options.model, adapter=options.adapter)
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    if not ids:
        raise ValueError(
            'the prompt is empty: numgpt generate "Once upon a time", or pipe a text in'
        )
    seed = secrets.randbits(32) if options.seed is None else options.seed
    max_new_tokens = options.max_new_tokens
    if max_new_tokens is None and options.max_length is None:
        max_new_tokens = NEW_TOKENS
    request = {
        "max_new_tokens": max_new_tokens,
        "max_length": options.max_length,
        "min_new_tokens": options.min_new_tokens,
        **sampling_options(options),
        "stop_strings": options.stop,
        "bad_words_ids": [
            tokenizer.encode(space + word) for word in options.ban for space in _spaces(tokenizer)
        ],
        "tokenizer": tokenizer,
        "seed": seed,
        "slide": options.slide,
    }
    began = time.perf_counter()
    if options.num_return_sequences == 1:
        decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
        tokens = model.stream(ids, **request)  # checks everything, before any text appears
        _write(prompt)
        made = longest = 0
        for made, token in enumerate(tokens, start=1):  # noqa: B007 (the count outlives the loop)
            _write(decoder.push(token))
        _write(decoder.finish() + "\n")
        longest = len(ids) + made
    else:
        count = options.num_return_sequences
        sequences = generate_each(model, ids, num_return_sequences=count, **request)
        made = sum(len(sequence) - len(ids) for sequence in sequences)
        longest = max(map(len, sequences))
        for number, sequence in enumerate(sequences, start=1):
            text = tokenizer.decode(sequence, skip_special_tokens=True)
            _write(f"=== {number} of {count} ===\n{text}\n\n")
    seconds = time.perf_counter() - began
    sampled = "" if options.greedy else f", seed {seed}"
    tell(f"{made} tokens in {seconds:.2f} s, {made / seconds:.1f} tokens/s{sampled}")
    if options.slide and longest > model.context_length:
        tell(
            f"the text is longer than the model's context of {model.context_length} tokens: each"
            " time that was full, it went on from the newer half (--no-slide ends there)",
        )


def _check(options: argparse.Namespace) -> None:
    """What the library would refuse in the names of its arguments, in those of the flags."""
    if options.greedy and options.num_return_sequences > 1:
        raise ValueError(
            "--greedy writes the same text every time: leave --num-return-sequences out"
        )
    for flag, texts in (("--ban", options.ban), ("--stop", options.stop)):
        for text in texts:
            if not text or (not text.isprintable() and not _is_unicode(text)):
                raise ValueError(f"{flag} {shown(text)}: give a text in UTF-8 that is not empty")


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _spaces(tokenizer: Any) -> tuple[str, ...]:
    """A word is one token with a space before it and another without, where tokens are more than
    characters."""
    return ("",) if not hasattr(tokenizer, "merges") else ("", " ")


def _write(text: str) -> None:
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
