"""numgpt train: train a model on text, resume a run, fine-tune a model."""

from __future__ import annotations

import argparse
from typing import Any

from numgpt.cli import runs
from numgpt.cli.common import add_command
from numgpt.cli.runs import add_run_options
from numgpt.messages import quoted, tell
from numgpt.options import OptionError
from numgpt.training import TrainConfig

# What a model that is fine-tuned has already.
GIVEN_BY_MODEL = ("arch", "n_layer", "n_head", "n_kv_head", "n_embd", "tokenizer", "vocab_size")


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "train",
        "train a model on text, from nothing or from other weights",
        "numgpt train --out runs/first\n"
        "numgpt train --data book.txt --out runs/book --n-layer 6 --n-embd 192 --n-head 6\n"
        "numgpt train --data book.txt --out runs/llama --arch llama --n-kv-head 2\n"
        "numgpt train --resume runs/first --steps 4000",
        run,
    )
    add_run_options(parser, TrainConfig)


def run(options: argparse.Namespace) -> None:
    runs.run(
        options,
        _check_combination,
        lambda trainer: tell(f'try: numgpt generate --model {quoted(trainer.out)} "…"'),
    )


def _check_combination(chosen: dict[str, Any]) -> None:
    """Raises ValueError for options that cannot be combined."""
    if chosen.get("init_from") is not None:
        for name in GIVEN_BY_MODEL:
            if name in chosen:
                alone = f"{{{name}}} cannot be combined with {{init_from:name}}: the model brings"
                raise OptionError(f"{alone} its own", **{name: chosen[name]})
    elif "vocab_size" in chosen and chosen.get("tokenizer", "bpe") != "bpe":
        needs = "{vocab_size} needs {tokenizer}: other tokenizers have the size that they have"
        raise OptionError(needs, vocab_size=chosen["vocab_size"], tokenizer="bpe")
