"""The training loop: batch → loss and gradients → clip → AdamW, with reports and checkpoints.

A run lives in one directory, and has it to itself:

    config.json, model.safetensors, tokenizer files    the best model so far, Hugging Face layout
    last/                                              … and that of the last step; or, with
                                                       keep="last", these two the other way round
    checkpoint.safetensors                             the last state, to resume from
    tokens.bin                                         the corpus, encoded
    log.jsonl, loss.png                                one record a report, and the curve
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numgpt import formats
from numgpt.data.batch import Batch
from numgpt.data.corpus import check_tokenizer
from numgpt.data.finding import OTHER_WEIGHTS, absolute
from numgpt.files import DirectoryLock, sweep
from numgpt.formats.source import is_finite
from numgpt.layers import TokenStatistics
from numgpt.messages import quoted, shown, tell
from numgpt.models import LanguageModel
from numgpt.tokenizer import BaseTokenizer
from numgpt.training import pretraining, tuning
from numgpt.training.adamw import AdamW
from numgpt.training.checkpoint import (
    RunState,
    check_fits,
    load_checkpoint,
    save_checkpoint,
    tuned_parameters,
)
from numgpt.training.config import PATHS, RunConfig, TrainConfig, TuneConfig, options_of
from numgpt.training.log import Log
from numgpt.training.schedule import learning_rate
from numgpt.training.starting import absolute_model, remove_other_weights, start_run


class BatchSource(Protocol):
    """What a run trains on, batch after batch."""

    validates: bool  # whether anything is held out

    def next_step(self) -> list[Batch]:
        """The batches of the next step."""

    def held_out(self) -> Iterable[Batch]:
        """The batches of a validation, the same every time."""

    def sample(self) -> tuple[str, str]:
        """A prompt, and how the model goes on."""


@dataclass(frozen=True)
class Task:
    """A kind of run: how it begins, what it trains on, which options can't change any more."""

    prepare: Callable[[Any, Path, Path], RunState]
    source: Callable[[RunState, Path, BaseTokenizer], BatchSource]
    fixed: frozenset[str]
    statistics: bool = False  # whether it reports accuracy and entropy of what is trained on


TASKS = {
    TrainConfig: Task(pretraining.prepare, pretraining.TextBatches, pretraining.FIXED),
    TuneConfig: Task(tuning.prepare, tuning.ExampleBatches, tuning.FIXED, statistics=True),
}


class TrainingError(RuntimeError):
    """Training can't go on: the loss is not finite."""


class Trainer:
    """One training run: `start` or `resume` it, then `run`.

    While it exists, or until `run` returns, no other process can work in its directory.
    """

    def __init__(
        self,
        state: RunState,
        out: Path,
        tokenizer: BaseTokenizer,
        source: BatchSource,
        lock: DirectoryLock,
    ):
        self.state = state
        self.out = out
        self.tokenizer = tokenizer
        self.source = source
        self.lock = lock
        self.log = Log(out, keep_to_step=state.optimizer.steps)
        self.stop_requested = False
        self.val_loss: float | None = None  # of the last validation

    @property
    def config(self) -> RunConfig:
        return self.state.config

    @property
    def task(self) -> Task:
        return TASKS[type(self.config)]

    @property
    def model(self) -> LanguageModel:
        return self.state.model

    @property
    def optimizer(self) -> AdamW:
        return self.state.optimizer

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
    def start(cls, config: RunConfig, out: str | Path, overwrite: bool = False) -> Trainer:
        """A new run in the directory `out`; with `overwrite` in place of the run or model there.

        Raises ValueError or OSError for what is known to fail later, and for a directory that holds
        a run, a model or a tokenizer already; then nothing has changed.
        """
        config.validate()
        if not str(out):
            raise ValueError('out="": name a directory')
        out = Path(out)
        lock = DirectoryLock(out)
        lock.acquire()
        try:
            sweep(out)
            start_run(config, out, TASKS[type(config)].prepare, overwrite)
            return cls._resumed(out, lock, {})
        except BaseException:
            lock.release()
            raise

    @classmethod
    def resume(
        cls,
        out: str | Path,
        changes: dict[str, Any] | None = None,
        kind: type[RunConfig] = RunConfig,
    ) -> Trainer:
        """Continue the run in `out` from its checkpoint, bit for bit.

        `changes` replaces options, for instance steps; `kind` is the kind of run that is expected.
        Raises ValueError for another kind, for an option that can't change any more, and where the
        run's files are not those that it began with.
        """
        out = Path(out)
        if not out.is_dir():
            raise FileNotFoundError(f"nothing to resume: there is no directory {out}")
        lock = DirectoryLock(out)
        lock.acquire()
        try:
            sweep(out)
            return cls._resumed(out, lock, changes or {}, kind)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _resumed(
        cls,
        out: Path,
        lock: DirectoryLock,
        changes: dict[str, Any],
        kind: type[RunConfig] = RunConfig,
    ) -> Trainer:
        state = load_checkpoint(out)
        if not isinstance(state.config, kind):
            command = f"numgpt {state.config.command} --resume {quoted(out)}"
            raise ValueError(f"{out} is a run of another kind: go on with {command}")
        config, known = state.config, options_of(type(state.config))
        task = TASKS[type(config)]
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"{name}={shown(value)} is not an option of such a run")
            value = absolute(value) if name in PATHS else value
            if name in ("init_from", "model") and isinstance(value, str):
                value = absolute_model(value)
            if name in task.fixed and _listed(value) != _listed(getattr(config, name)):
                mend = "raise --steps instead"
                if name != "epochs":
                    mend = "start a new run in another --out"
                raise ValueError(
                    f"{name}={shown(_listed(value))}: the run in {out} began with"
                    f" {shown(_listed(getattr(config, name)))}, and that cannot change; {mend}"
                )
            setattr(config, name, value)
        config.validate()
        if changes:
            config.cut_warmup()
        state.apply_options()
        if state.optimizer.steps:  # a new run has been checked before anything was there
            check_fits(out, config, state.model)
        else:
            remove_other_weights(out)
        tokenizer = formats.load_tokenizer(out)
        try:
            check_tokenizer(tokenizer, state.tokens)
        except ValueError as error:
            raise ValueError(f"{out}: {error}") from None
        return cls(state, out, tokenizer, task.source(state, out, tokenizer), lock)

    def run(self) -> None:
        """Train to the last step, or until `stop_requested` is set.  Saves before it returns.

        Raises TrainingError where the loss is not finite, OSError where a checkpoint can't be
        written; the checkpoint before stays as it is.
        """
        self.lock.acquire()
        try:
            self._run()
        finally:
            self.lock.release()

    def _run(self) -> None:
        config, state = self.config, self.state
        began, first_step, elsewhere = time.perf_counter(), self.optimizer.steps, 0.0
        first_token = state.tokens_seen
        while self.optimizer.steps < config.steps and not self.stop_requested:
            step_loss, norm, lr = self.step()
            state.unreported_loss += step_loss
            state.unreported_steps += 1
            step = self.optimizer.steps
            last = step == config.steps
            pause = time.perf_counter()
            validates = self.source.validates and (last or step % config.eval_every == 0)
            val_loss = self.validate() if validates else None
            if val_loss is not None or step % config.log_every == 0 or step == 1 or last:
                seconds = pause - began - elsewhere
                tokens = state.tokens_seen - first_token
                loss = state.unreported_loss / state.unreported_steps
                state.unreported_loss, state.unreported_steps = 0.0, 0
                self.report(
                    step, loss, val_loss, lr, norm, tokens / seconds, seconds / (step - first_step)
                )
            if last or step % config.save_every == 0:
                self.save(ends=last)
            if config.sample_every and (last or step % config.sample_every == 0):
                prompt, text = self.source.sample()
                of = f"step {step}{self._not_kept()}"
                tell(f"--- {of}, after {prompt!r} ---\n{text}\n---", stream=sys.stdout)
            elsewhere += time.perf_counter() - pause
        if self.stop_requested and self.optimizer.steps < config.steps:
            self.save(ends=True)

    def _not_kept(self) -> str:
        """Says of a sample which weights speak, where those of another step are the best so far."""
        best = self.state.best_step
        return f" (the best so far: {best})" if 0 < best < self.optimizer.steps else ""

    def step(self) -> tuple[float, float, float]:
        """One optimizer step.  -> mean loss of its batches, gradient norm, learning rate."""
        config, state, done = self.config, self.state, self.optimizer.steps
        rng = state.rng if config.has_dropout else None
        batches = self.source.next_step()
        count = max(1, sum(batch.counted for batch in batches))
        loss, gradients = 0.0, None
        for batch in batches:
            part, gradients = self.model.loss_and_grads(
                batch.ids,
                batch.targets,
                rng,
                weights=1 / count,
                add_to=gradients,
                statistics=state.statistics if self.task.statistics else None,
            )
            loss += part
        state.batches += len(batches)
        state.tokens_seen += sum(batch.tokens for batch in batches)
        lr = learning_rate(done, config.steps, config.lr, config.lowest_lr, config.warmup)
        self.optimizer.lr = lr
        norm = self.optimizer.step(config.grad_clip or None)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"at step {done + 1} the loss is {loss} and the gradient norm {norm}: stopped,"
                " nothing was overwritten; resume from the last checkpoint with a lower --lr, a"
                " longer --warmup or less --weight-decay"
            )
        return loss, norm, lr

    def validate(self) -> float:
        """Mean loss on the validation batches; keeps the weights if they are the best so far."""
        batches = list(self.source.held_out())
        count = max(1, sum(batch.counted for batch in batches))
        val_loss = sum(self.model.loss(b.ids, b.targets, 1 / count) for b in batches)
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
        if self.model.adapter is None:
            self.model.save_pretrained(directory)
        else:
            self.model.save_adapter(directory)

    def weights_in(self, directory: Path) -> LanguageModel:
        """A model with the weights that were kept there; the run's own, if it has an adapter, which
        then is that one."""
        if self.model.adapter is None:
            return formats.load_model(directory)
        self.model.delete_adapter()
        self.model.load_adapter(directory)
        return self.model

    def save(self, ends: bool = False) -> None:
        """Checkpoint, curve, and the weights of this step where the run's own directory holds the
        last; `ends`: of the run, also where they have a directory of their own."""
        self.lock.check()
        self._check_finite()
        place = self.places["last"]
        if place == self.out:
            self.save_model(place)  # first: a run whose checkpoint is its last has its last model
        try:
            if ends and place != self.out:
                self.save_model(place)
        finally:  # what can't be written there costs no step
            save_checkpoint(self.out, self.state)
        self.log.plot()

    def _check_finite(self) -> None:
        """Raises TrainingError where a step has made weights that are no numbers."""
        if not all(is_finite(array) for array in tuned_parameters(self.model).values()):
            raise TrainingError(
                f"at step {self.optimizer.steps} the weights are not finite any more: stopped,"
                " nothing was overwritten; resume from the last checkpoint with a lower --lr"
            )

    def report(
        self,
        step: int,
        loss: float,
        val_loss: float | None,
        lr: float,
        norm: float,
        tokens_per_second: float,
        seconds_per_step: float,
    ) -> None:
        """One line on stderr, one record in the log.  loss is the mean since the last one."""
        minutes, seconds = divmod(round(seconds_per_step * (self.config.steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        eta = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        validation = "          " if val_loss is None else f"val {val_loss:.4f}"
        width = len(str(self.config.steps))
        seen, self.state.statistics = self.state.statistics, TokenStatistics()
        metrics = {}
        if seen.tokens:  # named as trl names them
            metrics = {
                "mean_token_accuracy": seen.correct / seen.tokens,
                "entropy": seen.entropy / seen.tokens,
                "num_tokens": self.state.tokens_seen,
            }
            validation = f"accuracy {seen.correct / seen.tokens:.3f}  {validation}"
        tell(
            f"step {step:{width}}/{self.config.steps}  loss {loss:.4f}  {validation}  lr {lr:.2e}"
            f"  grad norm {norm:6.3f}  {tokens_per_second:,.0f} tokens/s  ETA {eta}"
        )
        self.log.add(
            {
                "step": step,
                "loss": loss,
                "val_loss": val_loss,
                "lr": lr,
                "grad_norm": norm,
                "tokens_per_second": round(tokens_per_second, 1),
            }
            | metrics
        )


def _listed(value: Any) -> Any:
    """One file of data is a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
