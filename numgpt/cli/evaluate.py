"""numgpt eval: loss, perplexity and bits per byte of a text; or how often a reward model prefers
what people preferred."""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np

from numgpt.cli import common
from numgpt.data.corpus import find_texts
from numgpt.data.records import ENDINGS
from numgpt.evaluation.perplexity import Evaluation, sliding_window_loss
from numgpt.evaluation.preferences import preference_accuracy
from numgpt.formats import load
from numgpt.messages import tell
from numgpt.models import LanguageModel
from numgpt.options import OptionError
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer.reading import read_text


def register(subparsers: Any) -> None:
    parser = common.add_command(
        subparsers,
        "eval",
        "measure how well a model predicts a text, or judges answers",
        "numgpt eval --model runs/first --data book.txt\n"
        "numgpt eval --model runs/judge --preferences held-out.jsonl",
        run,
    )
    common.add_model(parser)
    common.add_dtype(parser)
    measured = parser.add_mutually_exclusive_group(required=True)
    data = {
        "--data FILE": "text: files, directories or globs",
        "--preferences FILE": "JSON lines of prompt, chosen and rejected, for a reward model",
    }
    common.add_flags(measured, data, nargs="+")
    flags = {
        "--context N": "tokens in a window (default: the model's most)",
        "--stride N": "tokens a window moves on (default: half of it)",
        "--special-tokens": "special tokens in the text (<|endoftext|>) are meant, not spelt",
    }
    common.add_flags(parser, flags | common.THREADS)


def run(options: argparse.Namespace) -> None:
    if options.preferences is not None:
        judge = load(options.model, adapter=options.adapter, dtype=options.dtype)
        return _judge(*judge, options)
    model, tokenizer = common.load_language_model(options)
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
        common.show_progress(f"{scored:,} of {len(ids) - 1:,} tokens")

    loss = sliding_window_loss(model, ids, options.context, options.stride, progress)
    result = Evaluation(len(ids) - 1, loss, len(tokenizer.decode_bytes(ids[1:])))
    print(f"loss           {result.loss:.4f} nats per token")
    print(f"perplexity     {result.perplexity:.3f}")
    print(f"bits per byte  {result.bits_per_byte:.4f}")
    seconds = time.perf_counter() - began
    tell(
        f"{result.tokens:,} tokens, {result.bytes:,} bytes, in {seconds:.1f} s"
        f" ({result.tokens / seconds:,.0f} tokens/s)"
    )


def _judge(model: LanguageModel, tokenizer: BaseTokenizer, options: argparse.Namespace) -> None:
    for name in ("context", "stride"):
        if getattr(options, name) is not None:
            raise OptionError(f"{{{name}:name}} is for {{data:name}}: pairs are read whole")
    result = preference_accuracy(
        model, tokenizer, options.preferences, lambda done: common.show_progress(f"{done:,} pairs")
    )
    print(f"accuracy       {result.accuracy:.4f}")
    print(f"margin         {result.margin:.4f}")
    told = f"{result.pairs:,} pair{'s' * (result.pairs != 1)}"
    if result.cut:
        told += f"; {result.cut:,} too long, cut from the left of the prompt"
    if result.left_out:
        told += f"; {result.left_out:,} left out, too long for the model"
    tell(told)
