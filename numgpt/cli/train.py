"""numgpt train: train a model on text, resume a run, fine-tune a model."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from numgpt.cli.common import add_command, add_threads
from numgpt.training import TrainConfig, Trainer
from numgpt.training.config import OPTIONS, read_toml

# What a model that is fine-tuned has already.
GIVEN_BY_MODEL = (
    *("arch", "n_layer", "n_head", "n_kv_head", "n_embd"),
    *("tokenizer", "vocab_size"),
)


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "train",
        "train a model on text, from nothing or from other weights",
        "numgpt train --out runs/first\n"
        "numgpt train --data book.txt --out runs/book --tokenizer bpe --vocab-size 1024\n"
        "numgpt train --data book.txt --out runs/llama --arch llama --n-kv-head 2\n"
        "numgpt train --resume runs/first --steps 4000",
        run,
    )
    parser.add_argument("--out", metavar="DIR", help="directory of the new run")
    parser.add_argument("--resume", metavar="DIR", help="continue the run in this directory")
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file of the options below; flags win"
    )
    groups = {
        name: parser.add_argument_group(name)
        for name in dict.fromkeys(o.metadata["group"] for o in OPTIONS.values())
    }
    for name, field in OPTIONS.items():
        kind = type(field.default) if isinstance(field.default, (int, float)) else str
        default = "" if field.default is None else f" (default {field.default})"
        groups[field.metadata["group"]].add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            nargs="+" if name == "data" else None,
            default=argparse.SUPPRESS,  # so that what was not given can't win over a file
            metavar={int: "N", float: "X", str: "S"}[kind],
            help=field.metadata["help"] + default,
        )
    add_threads(parser)


def run(options: argparse.Namespace) -> None:
    chosen = read_toml(options.config) if options.config else {}
    chosen |= {name: value for name, value in vars(options).items() if name in OPTIONS}
    if (options.out is None) == (options.resume is None):
        raise ValueError("give --out DIR for a new run, or --resume DIR to continue one")
    if options.resume is not None:
        trainer = Trainer.resume(options.resume, chosen)
    else:
        given = [name for name in GIVEN_BY_MODEL if name in chosen]
        if "init_from" in chosen and given:
            raise ValueError(
                f"{given[0]}={chosen[given[0]]!r} goes not with init_from: the model brings its own"
            )
        if "vocab_size" in chosen and chosen.get("tokenizer") != "bpe":
            raise ValueError(
                f"vocab_size={chosen['vocab_size']} goes with --tokenizer bpe only: other"
                " tokenizers"
                " have the size that they have"
            )
        trainer = Trainer.start(TrainConfig(**chosen), options.out)
    _introduce(trainer)
    with _stopping_on_signals(trainer):
        trainer.run()
    done, steps = trainer.optimizer.steps, trainer.config.steps
    if done < steps:
        _say(
            f"stopped and saved at step {done} of {steps}; continue with: numgpt train --resume"
            f" {trainer.out}"
        )
        raise SystemExit(130)
    _say(
        f"done; the best model (validation loss {trainer.best_loss:.4f}) is in {trainer.out};"
        f' try: numgpt generate --model {trainer.out} "…"'
    )


def _introduce(trainer: Trainer) -> None:
    corpus, model = trainer.corpus, trainer.model
    if trainer.optimizer.steps >= trainer.config.steps:
        raise ValueError(
            f"the run in {trainer.out} has done its {trainer.optimizer.steps} steps: raise"
            " --steps to go on"
        )
    _say(
        f"{model.num_parameters():,} parameters; {len(corpus.train):,} tokens to train on,"
        f" {len(corpus.val):,} to"
        f" validate, vocabulary {trainer.tokenizer.vocab_size}; writing to {trainer.out}"
    )
    if trainer.optimizer.steps:
        _say(f"resumed at step {trainer.optimizer.steps}")


class _stopping_on_signals:  # noqa: N801 (used as a `with` statement reads)
    """Ctrl-C and a polite kill end the run after the step at hand; a second one ends it at once."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def __enter__(self) -> None:
        self.before = {
            sign: signal.signal(sign, self.handle) for sign in (signal.SIGINT, signal.SIGTERM)
        }

    def handle(self, sign: int, frame: Any) -> None:
        self.trainer.stop_requested = True
        self.__exit__()
        _say("stopping after this step; once more to stop at once, without saving")

    def __exit__(self, *_: object) -> None:
        for sign, handler in self.before.items():
            signal.signal(sign, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
