"""numgpt eval: loss, perplexity and bits per byte of a text."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np

from numgpt.cli.common import (
    add_command,
    add_dtype,
    add_model,
    add_special_tokens,
    add_threads,
    show_progress,
    whole,
)
from numgpt.data.corpus import find_texts
from numgpt.data.records import ENDINGS
from numgpt.evaluation.perplexity import Evaluation, sliding_window_loss
from numgpt.formats import load
from numgpt.messages import tell
from numgpt.tokenizer.reading import read_text


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "eval",
        "measure how well a model predicts a text",
        "numgpt eval --model runs/first --data book.txt",
        run,
    )
    add_model(parser)
    add_dtype(parser)
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="text: files, directories or globs"
    )
    parser.add_argument(
        "--context", type=whole, metavar="N", help="tokens in a window (default: the model's most)"
    )
    parser.add_argument(
        "--stride", type=whole, metavar="N", help="tokens a window moves on (default: half of it)"
    )
    add_special_tokens(parser, "text")
    add_threads(parser)


def run(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, adapter=options.adapter, dtype=options.dtype)
    files = find_texts(options.data)
    if lines := [file for file in files if str(file).endswith(ENDINGS)]:
        tell(f"numgpt: note: {lines[0]} is JSON: measured as the text it is, keys and all")
    texts = (read_text(file) for file in files)
    allowed = "all" if options.special_tokens else ()
    pieces = [
        tokenizer.encode(part, allowed, continues=place > 0)
        for text in texts
        for place, part in enumerate(text)
    ]
    start = tokenizer.encode("", add_special_tokens=True)  # nothing, or the bos token
    ids = np.array(list(itertools.chain(start, *pieces)), np.int64)
    began = time.perf_counter()

    def progress(scored: int) -> None:
        show_progress(f"{scored:,} of {len(ids) - 1:,} tokens")

    loss = sliding_window_loss(model, ids, options.context, options.stride, progress)
    result = Evaluation(len(ids) - 1, loss, len(tokenizer.decode_bytes(ids[1:])))
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    seconds = time.perf_counter() - began
    tell(
        f"{result.tokens:,} tokens, {result.bytes:,} bytes, in {seconds:.1f} s"
        f" ({result.tokens / seconds:,.0f} tokens/s)",
    )
