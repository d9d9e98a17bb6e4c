"""What the commands that train share: their options, and a run from its beginning to its end."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any

import numgpt
from numgpt.cli.common import THREADS, add_flags, check_directory_name, number, tell_note, whole
from numgpt.cli.config_file import read_toml
from numgpt.messages import quoted, tell
from numgpt.options import OptionError
from numgpt.training import Note, Sample, Saved, Trainer, defaults
from numgpt.training.checkpoint import checkpoint_bytes
from numgpt.training.config import GROUPS, RunConfig, TrainConfig, options_of
from numgpt.training.log import CURVE_FILE, can_plot, plot_curve
from numgpt.training.records import Record
from numgpt.training.tune_config import TuningConfig

# What a file of options may have beside those of a run.
OF_COMMAND: dict[str, type] = {"out": str, "resume": str, "overwrite": bool, "threads": int}
KINDS: dict[type, dict[str, Any]] = {
    bool: {"action": "store_true"},
    int: {"type": whole, "metavar": "N"},
    float: {"type": number, "metavar": "X"},
    str: {"metavar": "S"},
    list: {"metavar": "S", "action": "extend", "nargs": "+"},  # one or several
}
# What --help says of options whose default the data decide.
TUNED = {
    "steps": "from --epochs",
    "batch_size": f"{defaults.MANY[1]}; 4 for up to 500 examples",
    "warmup": f"{defaults.WARMUP:.0%} of the steps",
    "epochs": "15 for up to 30 examples, 10 up to 100, 8 up to 500, else 3",
    "lr": f"{defaults.LORA_LR:g}; of the whole model {defaults.MANY[2]:g}, 5e-5 for up to 100"
    " examples",
    "log_every": "a tenth, up to 10",
    "eval_every": "an epoch, up to 200",
    "sample_every": "as --eval-every",
    "save_every": "an epoch, up to 50",
}


def add_run_options(parser: argparse.ArgumentParser, config_class: type[RunConfig]) -> None:
    """The flags of a kind of run."""
    flags = {
        "--out DIR": "directory of the new run",
        "--overwrite": "replace the run or model that --out holds already",
        "--resume DIR": "continue the run in this directory",
        "--config FILE": "TOML file of these options; flags win",
    }
    add_flags(parser, flags)
    known = options_of(config_class)
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for name, field in known.items():
            if field.metadata["group"] != title:
                continue
            flag = "--" + name.replace("_", "-")
            text = (field.metadata["help"] + _default_of(name, config_class)).replace("%", "%%")
            kind = KINDS[field.metadata["rule"].kind]
            # What is not given has no place among the options: it can't win over a file.
            group.add_argument(flag, default=argparse.SUPPRESS, help=text, **kind)
    add_flags(parser, THREADS)
    parser.set_defaults(config_class=config_class)


def _default_of(name: str, config_class: type[RunConfig]) -> str:
    """What --help says of an option's default."""
    if issubclass(config_class, TuningConfig) and name in TUNED:
        of_kind = dict(TUNED)
        if not config_class.few:  # the same however many examples there are
            epochs, batch_size, lr = config_class.many
            rates = f"{config_class.lora_lr:g}; of the whole model {lr:g}"
            of_kind |= {"batch_size": f"{batch_size:g}", "epochs": f"{epochs:g}", "lr": rates}
        return f" (default {of_kind[name]})"
    if config_class is TrainConfig and name in defaults.FROM_NOTHING:
        tuned = defaults.FROM_A_MODEL.get(
            name, f"the model's context, up to {defaults.MOST_CONTEXT}"
        )
        return f" (default {defaults.FROM_NOTHING[name]}; with --init-from {tuned})"
    default = options_of(config_class)[name].default
    return "" if default is None or default is False else f" (default {default})"


def run(
    options: argparse.Namespace,
    check: Callable[[dict[str, Any]], None],
    end: Callable[[Trainer], None],
) -> None:
    """Start or resume a run, and train to its end; `check` refuses options of a new run that cannot
    be combined, `end` says what has been reached, and what to try."""
    known = options_of(options.config_class)
    chosen = {} if options.config is None else _read_file(options, known)
    flags = {name: value for name, value in vars(options).items() if name in known}
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in flags:
            chosen.pop(other, None)  # of the file: the flag decides on both
    chosen |= flags
    if options.out is not None and options.resume is not None:
        raise ValueError(
            f"--out {options.out} and --resume {options.resume}: give one of them; a resumed run"
            " goes on in its own directory"
        )
    if options.out is None and options.resume is None:
        raise ValueError("give --out DIR for a new run, or --resume DIR to continue one")
    for flag, name in (("--out", options.out), ("--resume", options.resume)):
        check_directory_name(flag, name)
    if options.resume is not None and options.overwrite:
        raise ValueError("--overwrite goes with --out: a resumed run goes on in its directory")
    report = functools.partial(_tell, options)
    if options.resume is not None:
        trainer = Trainer.resume(options.resume, chosen, options.config_class, report)
    else:
        try:
            check(chosen)
            config = options.config_class(**chosen)
            config.validate()
        except OptionError as error:
            if options.config is None or not (error.options.keys() & known.keys() - flags.keys()):
                raise
            raise error.after(options.config) from None  # the file that the option stands in
        trainer = Trainer.start(config, options.out, options.overwrite, report)
    if trainer.optimizer.steps >= trainer.config.steps:
        tell(
            f"the run in {trainer.out} has done its {trainer.optimizer.steps} steps; to go on,"
            " raise --steps"
        )
        return end(trainer)
    _introduce(trainer)
    with StoppingOnSignals(trainer) as signals:
        trainer.run(functools.partial(_tell, options, trainer=trainer))
    done, steps = trainer.optimizer.steps, trainer.config.steps
    if done < steps:
        tell(
            f"stopped and saved at step {done} of {steps}; continue with:"
            f" numgpt {trainer.config.command} --resume {quoted(trainer.out)}"
        )
        raise SystemExit(128 + signals.caught)
    tell(f"done; {_kept(trainer)}")
    end(trainer)


def _tell(options: argparse.Namespace, record: Record, trainer: Trainer | None = None) -> None:
    """What a run tells, for a person: samples on standard output, all else on standard error; with
    each checkpoint the curve is drawn."""
    if isinstance(record, Note) and isinstance(record.message, Warning):
        tell_note(record.message, options)
    elif not isinstance(record, Saved):
        tell(str(record), stream=sys.stdout if isinstance(record, Sample) else None)
    elif trainer is not None and can_plot():
        plot_curve(trainer.log.records, trainer.out / CURVE_FILE)


def _read_file(options: argparse.Namespace, known: Collection[str]) -> dict[str, Any]:
    """The options in a file; those of the command itself go to the flags that are not given."""
    chosen = read_toml(options.config, [*known, *OF_COMMAND])
    if options.out is not None or options.resume is not None:
        for name in ("out", "resume", "overwrite"):  # the flag decides on all of them
            chosen.pop(name, None)
    for name, kind in OF_COMMAND.items():
        if name not in chosen:
            continue
        value: Any = chosen.pop(name)
        if type(value) is not kind:
            what = {str: "a text", bool: "true or false", int: "a whole number"}[kind]
            error = OptionError(f"{{{name}}}: expected {what}", **{name: value})
            raise error.after(options.config)
        if not getattr(options, name):
            setattr(options, name, value)
            if name == "threads":
                numgpt.set_num_threads(options.threads)
    return chosen


def _kept(trainer: Trainer) -> str:
    """Which weights are where, and why."""
    steps, best, places = trainer.optimizer.steps, trainer.state.best_step, trainer.places
    if "best" not in places:
        return f"the model is in {trainer.out}"
    lowest = f"step {best}, whose validation loss is the lowest ({trainer.best_loss:.4f})"
    if best == steps:
        return f"the model is in {trainer.out}: that of {lowest}"
    last = f"step {steps}, the last"
    last += "" if trainer.val_loss is None else f" ({trainer.val_loss:.4f})"
    held = {"best": lowest, "last": last}
    (first, out), (second, beside) = places.items()
    return f"{out} holds the weights of {held[first]}; {beside} those of {held[second]}"


def _introduce(trainer: Trainer) -> None:
    model, config = trainer.model, trainer.config
    trained = model.num_parameters(trainable=True)
    of_all = "" if model.adapter is None else f", {trained:,} of them trained"
    tell(f"{model.num_parameters():,} parameters{of_all}; {trainer.task}; writing to {trainer.out}")
    curve = "" if can_plot() else "; no curve: it needs  pip install matplotlib"
    size = max(0.1, checkpoint_bytes(model) / 1e6)
    every = "step" if config.save_every == 1 else f"{config.save_every} steps"
    tell(f"a checkpoint of {size:,.1f} MB every {every}{curve}")
    if trainer.optimizer.steps:
        tell(f"resumed at step {trainer.optimizer.steps}")


class StoppingOnSignals:
    """Ctrl-C, a polite kill and a closed terminal end the run after the step at hand; a second one
    ends it at once. Where nohup has the terminal's end ignored, it stays so."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.caught = 0

    def __enter__(self) -> StoppingOnSignals:
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
