"""The training loop: steps, with reports, validations, samples and checkpoints between them.

The method itself is in step.py. A run lives in one directory, and has it to itself:

    config.json, model.safetensors, tokenizer files    the best model so far, Hugging Face layout
    last/                                              … and that of the last step; or, with
                                                       keep="last", these two the other way round
    checkpoint.safetensors                             the last state, to resume from
    tokens.bin                                         the corpus, encoded
    log.jsonl                                          one record a report
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numgpt import formats
from numgpt.data.corpus import check_tokenizer
from numgpt.data.finding import CHECKPOINT_FILE, OTHER_WEIGHTS
from numgpt.files import DirectoryLock, sweep
from numgpt.formats.source import is_finite
from numgpt.models import LanguageModel
from numgpt.options import OptionError
from numgpt.reading import about
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.checkpoint import (
    RunState,
    check_disk,
    check_memory,
    load_checkpoint,
    save_checkpoint,
    save_tuned,
    tuned_parameters,
)
from numgpt.training.config import RunConfig
from numgpt.training.kinds import KINDS
from numgpt.training.log import Log
from numgpt.training.records import Callback, Note, Record, Report, Sample, Saved, warnings_as_notes
from numgpt.training.rewards import RewardError
from numgpt.training.starting import change_options, remove_other_weights, start_run
from numgpt.training.step import add_sums, learning_rate, step
from numgpt.training.tasks import TrainingError


class Trainer:
    """One training run: `start` or `resume` it, then `run`.

    While it exists, or until `run` returns, no other process can work in its directory. What
    happens is reported as records (records.py): the notes of its beginning first.
    """

    def __init__(
        self,
        state: RunState,
        out: Path,
        tokenizer: BaseTokenizer,
        lock: DirectoryLock,
        notes: list[Record],
        report: Callback | None,
    ):
        self.state, self.out, self.tokenizer = state, out, tokenizer
        self.task = KINDS[type(state.config)](state, out, tokenizer)
        self.config, self.model, self.optimizer = state.config, state.model, state.optimizer
        self.lock, self.notes, self.tell = lock, notes, report or (lambda record: None)
        self.log = Log(out, keep_to_step=state.optimizer.steps)
        self.stop_requested = False
        self.saved_step = state.optimizer.steps
        self.val_loss: float | None = None  # of the last validation
        self._checkpoint = _identity(out / CHECKPOINT_FILE)  # as this process left it

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        return self.state.best_loss

    @property
    def places(self) -> dict[str, Path]:
        """Where weights are kept: those that the run's own directory holds first."""
        if math.isinf(self.best_loss):
            return {"last": self.out}
        other = OTHER_WEIGHTS[self.config.keep == OTHER_WEIGHTS[0]]
        return {self.config.keep: self.out, other: self.out / other}

    @classmethod
    def start(
        cls,
        config: RunConfig,
        out: str | Path,
        overwrite: bool = False,
        report: Callback | None = None,
    ) -> Trainer:
        """A new run in the directory `out`; with `overwrite` in place of the run or model there.
        `report` is told at once what there is to tell, or else the one that `run` is given.

        Raises ValueError or OSError for what is known to fail later, and for a directory that holds
        a run, a model or a tokenizer already; then nothing has changed.
        """
        config.validate()
        if not str(out):
            raise OptionError("{out}: name a directory", out=out)
        out, notes = Path(out), list[Record]()
        with _locking(out) as lock, warnings_as_notes(tell := report or notes.append):
            prepare = KINDS[type(config)].prepare
            state, tokenizer = start_run(config, out, prepare, tell, overwrite)
            config.warn_of_slow_products()
            return cls(state, out, tokenizer, lock, notes, report)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        changes: dict[str, Any] | None = None,
        kind: type[RunConfig] = RunConfig,
        report: Callback | None = None,
    ) -> Trainer:
        """Continue the run in `out` from its checkpoint, bit for bit.

        `changes` replaces options, for instance steps; `kind` is the kind of run that is expected.
        Raises ValueError for another kind, for an option that can't change any more, and where the
        run's files are not those that it began with.
        """
        out, notes = Path(out), list[Record]()
        if not out.is_dir():
            raise FileNotFoundError(f"nothing to resume: there is no directory {out}")
        with _locking(out) as lock, warnings_as_notes(report or notes.append):
            state = load_checkpoint(out)
            if not isinstance(state.config, kind):
                command = f"numgpt {state.config.command}"
                raise ValueError(f"{out} is a run of another kind: resume it with {command}")
            change_options(state.config, changes or {}, out)
            state.apply_options()
            if not state.optimizer.steps:  # its beginning may have been cut short before this
                remove_other_weights(out)
            trained = state.model.num_parameters(trainable=True)
            check_memory(state.config, state.model.config, trained)
            check_disk(out, state.model)
            tokenizer = formats.load_tokenizer(out)
            with about(out):
                check_tokenizer(tokenizer, state.tokens)
            KINDS[type(state.config)].restore(state, out, tokenizer)
            state.config.warn_of_slow_products()
            return cls(state, out, tokenizer, lock, notes, report)

    def run(self, report: Callback | None = None) -> None:
        """Train to the last step, or until `stop_requested` is set.  Saves before it returns.

        `report` is called with each record. Raises TrainingError where the loss is not finite,
        OSError where a checkpoint can't be written; the checkpoint before stays as it is. A second
        call raises ValueError where another trainer has gone on with the run in between,
        FileNotFoundError where it is gone.
        """
        self.tell = report or self.tell
        self.lock.acquire()
        try:
            if _identity(self.out / CHECKPOINT_FILE) != self._checkpoint:
                raise ValueError(
                    f"{self.out} has another checkpoint than this run's: Trainer.resume goes on"
                    " from it"
                )
            while self.notes:  # that nobody has heard yet
                self.tell(self.notes[0])
                del self.notes[0]
            try:
                self._run()
            except RewardError:  # of somebody's function: what was learnt before it is kept
                self.save(ends=True)
                raise
        finally:
            self.lock.release()

    def _run(self) -> None:
        config, state = self.config, self.state
        first, first_token, seconds = self.optimizer.steps, state.tokens_seen, 0.0
        while self.optimizer.steps < config.steps and not self.stop_requested:
            began = time.perf_counter()
            norm = self.step()
            seconds += time.perf_counter() - began
            done = self.optimizer.steps
            last = done == config.steps
            validates = self.task.validates and (last or done % config.eval_every == 0)
            val_loss = self.validate() if validates else None
            if validates or done % config.log_every == 0 or done == 1 or last:
                speed = (state.tokens_seen - first_token) / seconds
                self.report(val_loss, norm, speed, seconds / (done - first))
            if last or done % config.save_every == 0:
                self.save(ends=last)
            if config.sample_every and (last or done % config.sample_every == 0):
                self.tell(Sample(done, state.best_step, *self.task.sample()))
            for remark in self.task.remarks():
                self.tell(Note(remark))
        stopped = self.optimizer.steps < config.steps
        if stopped or self.saved_step != self.optimizer.steps:  # as a callback's error was between
            self.save(ends=True)

    def step(self) -> float:
        """One optimizer step -> the norm of its gradients."""
        config, state, done = self.config, self.state, self.optimizer.steps
        batches = self.task.next_step()
        lr = learning_rate(done, config.steps, config.lr, config.lowest_lr, config.warmup)
        how = lr, config.grad_clip, config.products
        sums, norm = step(self.model, batches, self.task, self.optimizer, *how)
        state.batches += len(batches)
        state.tokens_seen += int(sums["tokens"])
        if not math.isfinite(sums["loss"]) or not math.isfinite(norm):
            raise TrainingError(
                "at step {0} the loss is {1} and the gradient norm {2}: stopped, nothing was"
                " overwritten; resume from the last checkpoint with a lower {lr:name}, a longer"
                " {warmup:name} or less {weight_decay:name}",
                done + 1,
                sums["loss"],
                norm,
            )
        state.unreported = add_sums(state.unreported, sums)
        state.unreported_steps += 1
        return norm

    def validate(self) -> float:
        """Loss of what is held out; keeps the weights if they are the best so far."""
        with self.model.autocast(self.config.products):
            val_loss = self.task.held_out_loss(self.model)
        if val_loss < self.best_loss:
            self.lock.check()
            self._check_finite()
            self.state.best_loss, self.state.best_step = val_loss, self.optimizer.steps
            self.save_model(self.places["best"])
        self.val_loss = val_loss
        return val_loss

    def save_model(self, directory: Path) -> None:
        """The adapter in PEFT's layout, or the whole model in Hugging Face's."""
        if directory != self.out:
            directory.mkdir(exist_ok=True)
            self.tokenizer.save_pretrained(directory)
        save_tuned(self.model, directory, self.task.keeps_head)

    def weights_in(self, directory: Path) -> LanguageModel:
        """A model with the weights that were kept there; the run's own, if it has an adapter, which
        then is that one."""
        if self.model.adapter is None:
            return formats.load_model(directory)
        self.model.delete_adapter()
        self.model.load_adapter(directory)
        return self.model

    def save(self, ends: bool = False) -> None:
        """Checkpoint, and the weights of this step where the run's own directory holds the last;
        `ends`: of the run, also where they have a directory of their own."""
        self.lock.check()
        self._check_finite()
        place = self.places["last"]
        if place == self.out:
            self.save_model(place)  # first: a run whose checkpoint is its last has its last model
        try:
            if ends and place != self.out:
                self.save_model(place)
        finally:  # what can't be written there costs no step
            try:
                save_checkpoint(self.out, self.state)
            finally:
                self._checkpoint = _identity(self.out / CHECKPOINT_FILE)
        self.saved_step = self.optimizer.steps
        self.tell(Saved(self.saved_step))

    def _check_finite(self) -> None:
        """Raises TrainingError where a step has made weights that are no numbers."""
        if not all(is_finite(array) for array in tuned_parameters(self.model).values()):
            raise TrainingError(
                "at step {0} the weights are not finite any more: stopped, nothing was overwritten;"
                " resume from the last checkpoint with a lower {lr:name}",
                self.optimizer.steps,
            )

    def report(
        self, val_loss: float | None, norm: float, tokens_per_second: float, seconds_a_step: float
    ) -> None:
        """Tell of the steps since the last time, and log it."""
        state, done = self.state, self.optimizer.steps
        sums, steps = state.unreported, state.unreported_steps
        state.unreported, state.unreported_steps = {}, 0
        report = Report(
            done,
            self.config.steps,
            sums["loss"] / steps,
            val_loss,
            self.optimizer.lr,
            norm,
            tokens_per_second,
            seconds_a_step * (self.config.steps - done),
            self.task.metrics(sums),
        )
        self.log.add(report.logged())
        self.tell(report)


def _identity(path: Path) -> tuple[int, int]:
    """What another file of the same name does not have."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


@contextmanager
def _locking(out: Path) -> Iterator[DirectoryLock]:
    """The lock of a run's directory, which is kept unless an error comes."""
    lock = DirectoryLock(out)
    lock.acquire()
    try:
        for place in (out, *(out / name for name in OTHER_WEIGHTS)):
            sweep(place)
        yield lock
    except BaseException:
        lock.release()
        raise
