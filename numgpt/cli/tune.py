"""numgpt tune: teach a model from examples."""

from __future__ import annotations

import argparse
from typing import Any

from numgpt.cli import runs
from numgpt.cli.common import add_command
from numgpt.messages import quoted, shown
from numgpt.training import Trainer, TuneConfig


def register(subparsers: Any) -> None:
    tune = add_command(
        subparsers,
        "tune",
        "teach a model from examples of what to answer",
        "numgpt tune sft --model smollm2 --data answers.jsonl --out runs/desk",
        None,
    )
    methods = tune.add_subparsers(metavar="METHOD", required=True)
    sft = add_command(
        methods,
        "sft",
        "supervised tuning: learn the answers of examples, by an adapter (LoRA) or as a whole",
        "numgpt tune sft --model smollm2 --data answers.jsonl --out runs/desk --show 2\n"
        "numgpt tune sft --model smollm2 --data answers.jsonl --val-fraction 0.1 --lora-r 0 --out"
        " runs/whole\n"
        "numgpt tune sft --resume runs/desk --steps 400\n"
        "where a line of the file is\n"
        '{"prompt": "…", "completion": "…"}  or  {"messages": [{"role": "user", "content": "…"},'
        ' {"role": "assistant", "content": "…"}]}',
        run_sft,
    )
    runs.add_run_options(sft, TuneConfig)


def run_sft(options: argparse.Namespace) -> None:
    runs.run(options, _check, _end)


def _check(chosen: dict[str, Any]) -> None:
    """Raises ValueError for options that are missing, or cannot be combined."""
    for name in ("model", "data"):
        if name not in chosen:
            what = "the model to tune" if name == "model" else "the examples that it learns from"
            raise ValueError(f"give --{name}, {what}")
    if chosen.get("lora_r") == 0:
        for name in ("lora_alpha", "lora_targets", "lora_dropout", "use_rslora"):
            if name in chosen:
                given = name if chosen[name] is True else f"{name}={shown(chosen[name])}"
                raise ValueError(
                    f"{given} cannot be combined with --lora-r 0, which tunes the whole model"
                )
    if "epochs" in chosen and "steps" in chosen:
        raise ValueError(
            f"epochs={chosen['epochs']} cannot be combined with steps={chosen['steps']}: choose one"
        )


def _end(trainer: Trainer) -> str:
    if trainer.state.tokens.conversations:
        return f"numgpt chat --model {quoted(trainer.out)}"
    return f'numgpt generate --model {quoted(trainer.out)} "…"'
