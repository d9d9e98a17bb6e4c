"""numgpt explain: one page that shows what a model does with a text, forwards and backwards."""

from __future__ import annotations

import argparse
import re
import webbrowser
from pathlib import Path
from typing import Any

from numgpt.cli import common
from numgpt.messages import quoted, shown, tell

OUT = "explain.html"


def register(subparsers: Any) -> None:
    parser = common.add_command(
        subparsers,
        "explain",
        "show what a model does with a text, in one page",
        'numgpt explain "My lord, the" --target " king" --open',
        run,
    )
    parser.add_argument(
        "text", nargs="*", help="the text, of which 64 tokens are read; - or a pipe: standard input"
    )
    common.add_model(parser)
    flags = {
        "--token N": "the token to look at first, from 0 (the last)",
        "--target WORD": "what may come after it, with its space (what does, or the likeliest)",
    }
    common.add_flags(parser, flags)
    parser.add_argument(
        "--layers", type=_layers, metavar="A:B", help="keep layers A to B - 1 only (all)"
    )
    common.add_flags(parser, {"--out FILE": f"the page to write (default {OUT})"}, default=OUT)
    common.add_flags(parser, {"--open": "open it in the browser"} | common.THREADS)


def run(options: argparse.Namespace) -> None:
    # Here, so that no other command waits for them.
    from numgpt.insight.document import page, require_place

    text = common.text_argument(" ".join(options.text) if options.text else None, "text")
    require_place(options.out)
    model, tokenizer = common.load_language_model(options)
    made = page(
        model, tokenizer, text, options.token, options.target, options.layers, common.show_progress
    )
    common.show_progress("")
    for note in made.notes:
        tell(f"numgpt: note: {note}")
    made.save(options.out)
    print(options.out)
    if options.open and not webbrowser.open(Path(options.out).resolve().as_uri()):
        tell(f"numgpt: note: there is no browser to open: open {quoted(options.out)} yourself")


def _layers(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected A:B, as in 0:4 for the first four layers, got {shown(text)}"
        )
    first, last = (int(number) if number else None for number in match.groups())
    return first, last
