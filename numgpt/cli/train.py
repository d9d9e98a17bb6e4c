"""numgpt train: train a model on text, resume a run, fine-tune a model."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import Any

from numgpt.cli.common import add_command, add_threads, check_directory_name, number, whole
from numgpt.messages import quoted, shown, tell
from numgpt.training import TrainConfig, Trainer
from numgpt.training.checkpoint import checkpoint_bytes
from numgpt.training.config import OPTIONS, default_of, read_toml
from numgpt.training.log import can_plot

# What a model that is fine-tuned has already.
GIVEN_BY_MODEL = ("arch", "n_layer", "n_head", "n_kv_head", "n_embd", "tokenizer", "vocab_size")
KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (whole, "N"),
    float: (number, "X"),
    str: (str, "S"),
}


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
    parser.add_argument("--out", metavar="DIR", help="directory of the new run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run or model that --out holds already"
    )
    parser.add_argument("--resume", metavar="DIR", help="continue the run in this directory")
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file of the options below; flags win"
    )
    groups = {
        name: parser.add_argument_group(name)
        for name in dict.fromkeys(o.metadata["group"] for o in OPTIONS.values())
    }
    for name, field in OPTIONS.items():
        kind, letter = KINDS[field.metadata["kind"]]
        groups[field.metadata["group"]].add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            nargs="+" if name == "data" else None,
            default=argparse.SUPPRESS,  # so that what was not given can't win over a file
            metavar=letter,
            help=field.metadata["help"] + default_of(name),
        )
    add_threads(parser)


def run(options: argparse.Namespace) -> None:
    chosen = {} if options.config is None else read_toml(options.config)
    chosen |= {name: value for name, value in vars(options).items() if name in OPTIONS}
    if (options.out is None) == (options.resume is None):
        raise ValueError("give --out DIR for a new run, or --resume DIR to continue one")
    for flag, name in (("--out", options.out), ("--resume", options.resume)):
        check_directory_name(flag, name)
    if options.resume is not None and options.overwrite:
        raise ValueError("--overwrite goes with --out: a resumed run goes on in its directory")
    if options.resume is not None:
        trainer = Trainer.resume(options.resume, chosen)
    else:
        _check_combination(chosen)
        trainer = Trainer.start(TrainConfig(**chosen), options.out, options.overwrite)
    if trainer.optimizer.steps >= trainer.config.steps:
        return tell(
            f"the run in {trainer.out} has done its {trainer.optimizer.steps} steps; to go on,"
            " raise --steps"
        )
    _introduce(trainer)
    with _StoppingOnSignals(trainer) as signals:
        trainer.run()
    done, steps = trainer.optimizer.steps, trainer.config.steps
    if done < steps:
        tell(
            f"stopped and saved at step {done} of {steps}; continue with: numgpt train --resume"
            f" {quoted(trainer.out)}"
        )
        raise SystemExit(128 + signals.caught)
    tell(
        f"done; the best model (validation loss {trainer.best_loss:.4f}) is in {trainer.out};"
        f' try: numgpt generate --model {quoted(trainer.out)} "…"'
    )


def _check_combination(chosen: dict[str, Any]) -> None:
    """Raises ValueError for options that cannot be combined."""
    if chosen.get("init_from") is not None:
        for name in GIVEN_BY_MODEL:
            if name in chosen:
                raise ValueError(
                    f"{name}={shown(chosen[name])} cannot be combined with --init-from: the model"
                    " brings its own"
                )
    elif "vocab_size" in chosen and chosen.get("tokenizer", "bpe") != "bpe":
        raise ValueError(
            f"vocab_size={shown(chosen['vocab_size'])} needs --tokenizer bpe: other tokenizers have"
            " the size that they have"
        )


def _introduce(trainer: Trainer) -> None:
    corpus, model, config = trainer.corpus, trainer.model, trainer.config
    tell(
        f"{model.num_parameters():,} parameters; {len(corpus.train):,} tokens to train on,"
        f" {len(corpus.val):,} to validate, vocabulary {trainer.tokenizer.vocab_size};"
        f" writing to {trainer.out}"
    )
    curve = "" if can_plot() else "; no curve: it needs  pip install matplotlib"
    size = max(0.1, checkpoint_bytes(model) / 1e6)
    tell(f"a checkpoint of {size:,.1f} MB every {config.save_every} steps{curve}")
    if trainer.optimizer.steps:
        tell(f"resumed at step {trainer.optimizer.steps}")


class _StoppingOnSignals:
    """Ctrl-C, a polite kill and a closed terminal end the run after the step at hand; a second one
    ends it at once. Where nohup has the terminal's end ignored, it stays so."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.caught = 0

    def __enter__(self) -> _StoppingOnSignals:
        heeded = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            heeded.append(hangup)
        self.before = {sign: signal.signal(sign, self.handle) for sign in heeded}
        return self

    def handle(self, sign: int, frame: Any) -> None:
        self.trainer.stop_requested = True
        self.caught = sign
        self.__exit__()
        tell("stopping after this step; once more to stop at once, without saving")

    def __exit__(self, *_: object) -> None:
        for sign, handler in self.before.items():
            signal.signal(sign, handler)
