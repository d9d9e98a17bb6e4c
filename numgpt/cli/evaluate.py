"""numgpt eval: loss, perplexity and bits per byte of a text."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from numgpt.cli.common import add_command, add_model, add_threads
from numgpt.formats import load
from numgpt.tokenizer.reading import read_text
from numgpt.training.evaluation import Evaluation, sliding_window_loss


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "eval",
        "measure how well a model predicts a text",
        "numgpt eval --model runs/first --data book.txt",
        run,
    )
    add_model(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="the text")
    parser.add_argument(
        "--context", type=int, metavar="N", help="tokens in a window (default: the model's most)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens a window moves on (default: half of it)"
    )
    add_threads(parser)


def run(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
    ids = np.concatenate(
        [np.array(tokenizer.encode(part), np.int64) for part in read_text(options.data)] or [[]]
    )
    began = time.perf_counter()
    loss = sliding_window_loss(model, ids, options.context, options.stride)
    result = Evaluation(len(ids) - 1, loss, len(tokenizer.decode_bytes(ids[1:].astype(np.int64))))
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    seconds = time.perf_counter() - began
    print(
        f"{result.tokens:,} tokens, {result.bytes:,} bytes, in {seconds:.1f} s"
        f" ({result.tokens / seconds:,.0f} tokens/s)",
        file=sys.stderr,
    )
