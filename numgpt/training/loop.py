"""The training loop: batch → loss and gradients → clip → AdamW, with reports and checkpoints.

A run lives in one directory:

    config.json, model.safetensors, tokenizer files    the best model so far, Hugging Face layout
    checkpoint.safetensors                             the last state, to resume from
    tokens.bin, tokens.json                            the corpus, encoded
    log.jsonl, loss.png                                one record a report, and the curve
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from numgpt import formats
from numgpt.models import LanguageModel
from numgpt.runtime.files import check_writable, remove_leftovers, writing_into
from numgpt.tokenizer import BaseTokenizer
from numgpt.training.adamw import AdamW
from numgpt.training.beginning import make_tokenizer, new_model
from numgpt.training.checkpoint import (
    CHECKPOINT_FILE,
    check_room,
    read_state,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)
from numgpt.training.config import TrainConfig
from numgpt.training.corpus import Corpus, absolute, prepare_corpus
from numgpt.training.log import Log
from numgpt.training.schedule import learning_rate

SAMPLE_TOKENS = 200
# What decides on the tokens, the sizes and the batches of a run; the rest may change when it is
# resumed.
FIXED = (
    *(
        "data",
        "val_fraction",
        "tokenizer",
        "vocab_size",
        "arch",
        "n_layer",
        "n_head",
        "n_kv_head",
        "n_embd",
        "block_size",
    ),
    *("init_from", "seed"),
)


class TrainingError(RuntimeError):
    """Training can't go on: the loss is not finite."""


class Trainer:
    """One training run: `start` or `resume` it, then `run`."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        model: LanguageModel,
        tokenizer: BaseTokenizer,
        corpus: Corpus,
        steps_done: int = 0,
    ):
        check_room(out, model)
        remove_leftovers(out)
        model.config.set_dropout(config.dropout)
        self.config = config
        self.out = out
        self.model = model
        self.tokenizer = tokenizer
        self.corpus = corpus
        self.optimizer = AdamW(
            model, config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
        )
        self.rng = np.random.default_rng(config.seed)
        self.best_loss = math.inf
        self.log = Log(out, keep_to_step=steps_done)
        self.stop_requested = False

    @classmethod
    def start(cls, config: TrainConfig, out: str | Path) -> Trainer:
        """A new run in the directory `out`.

        Raises ValueError or OSError for what is known to fail later, and for a directory that holds
        a model already.
        """
        config.validate()
        out = Path(out)
        for name in (CHECKPOINT_FILE, formats.huggingface.WEIGHTS_FILE):
            if (out / name).exists():
                raise ValueError(
                    f"{out} holds a {name} already: continue a run with --resume {out},"
                    " or choose another --out"
                )
        with writing_into(out):
            return cls._prepare(config, out)

    @classmethod
    def _prepare(cls, config: TrainConfig, out: Path) -> Trainer:
        """Tokenizer, model and corpus of a new run."""
        config.data = absolute(config.data)
        if config.init_from is not None:
            model, tokenizer = formats.load(config.init_from)
            if config.block_size > model.context_length:
                raise ValueError(
                    f"block_size={config.block_size} is more than the"
                    f" {model.context_field}={model.context_length} of {config.init_from}: lower it"
                )
        else:
            tokenizer = make_tokenizer(config)
            model = new_model(config, tokenizer)
        corpus = prepare_corpus(config.data, tokenizer, out, config.val_fraction, config.block_size)
        trainer = cls(config, out, model, tokenizer, corpus)
        tokenizer.save_pretrained(out)
        return trainer

    @classmethod
    def resume(cls, out: str | Path, changes: dict[str, Any] | None = None) -> Trainer:
        """Continue the run in `out` from its checkpoint, bit for bit.

        `changes` replaces options, for instance steps. Raises ValueError for one that can't change
        any more.
        """
        out = Path(out)
        state = read_state(out)
        config = state["options"]
        changes = dict(changes or {})
        if "data" in changes:
            changes["data"] = absolute(changes["data"])
        for name, value in changes.items():
            if name in FIXED and value != getattr(config, name):
                raise ValueError(
                    f"{name}={value!r}: the run in {out} began with {getattr(config, name)!r},"
                    " and that can't change; start a new run in another --out"
                )
            setattr(config, name, value)
        config.validate()
        check_writable(out)
        model, tokenizer = restore_model(state), formats.load_tokenizer(out)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"{out}: its tokenizer has {tokenizer.vocab_size} tokens, its model only"
                f" {model.config.vocab_size}: put the tokenizer files of this run back"
            )
        corpus = prepare_corpus(
            config.data, tokenizer, out, config.val_fraction, config.block_size, resuming=True
        )
        trainer = cls(config, out, model, tokenizer, corpus, state["step"])
        restore_optimizer(state, trainer.optimizer)
        trainer.rng.bit_generator.state = state["generator"]
        trainer.best_loss = state["best_loss"]
        return trainer

    def run(self) -> None:
        """Train to the last step, or until `stop_requested` is set.  Saves before it returns.

        Raises TrainingError where the loss is not finite, OSError where a checkpoint can't be
        written; the checkpoint before stays as it is.
        """
        config = self.config
        began, first_step, elsewhere = time.perf_counter(), self.optimizer.steps, 0.0
        while self.optimizer.steps < config.steps and not self.stop_requested:
            loss, norm, lr = self.step()
            step = self.optimizer.steps
            last = step == config.steps
            pause = time.perf_counter()
            val_loss = self.validate() if last or step % config.eval_every == 0 else None
            if val_loss is not None or step % config.log_every == 0 or step == 1:
                seconds = pause - began - elsewhere
                tokens = (
                    (step - first_step) * config.grad_accum * config.batch_size * config.block_size
                )
                self.report(
                    step, loss, val_loss, lr, norm, tokens / seconds, seconds / (step - first_step)
                )
            if last or step % config.save_every == 0:
                self.save()
            if config.sample_every and (last or step % config.sample_every == 0):
                prompt, text = self.sample()
                _show(f"--- step {step}, after {prompt!r} ---\n{text}\n---", sys.stdout)
            elsewhere += time.perf_counter() - pause
        if self.stop_requested and self.optimizer.steps < config.steps:
            self.save()

    def step(self) -> tuple[float, float, float]:
        """One optimizer step.  -> mean loss of its batches, gradient norm, learning rate."""
        config, done = self.config, self.optimizer.steps
        loss = 0.0
        for number in range(config.grad_accum):
            ids, targets = self.corpus.batch(self.rng, config.batch_size, config.block_size)
            batch_loss, _ = self.model.loss_and_grads(
                ids,
                targets,
                self.rng if config.dropout else None,
                accumulate=number > 0,
                scale=1 / config.grad_accum,
            )
            loss += batch_loss / config.grad_accum
        lr = learning_rate(done, config.steps, config.lr, config.min_lr, config.warmup)
        self.optimizer.lr = lr
        norm = self.optimizer.step(config.grad_clip or None)
        if not math.isfinite(loss) or not math.isfinite(norm):
            saved = (self.out / CHECKPOINT_FILE).exists()
            way_out = "resume from the last checkpoint" if saved else "start again"
            raise TrainingError(
                f"at step {done + 1} the loss is {loss} and the gradient norm {norm}: stopped,"
                f" nothing was overwritten; {way_out} with a lower --lr or a longer --warmup"
            )
        return loss, norm, lr

    def validate(self) -> float:
        """Mean loss on the validation batches; keeps the weights if they are the best so far."""
        config = self.config
        batches = self.corpus.validation_batches(
            config.eval_batches, config.batch_size, config.block_size
        )
        val_loss = float(np.mean([self.model.loss(ids, targets) for ids, targets in batches]))
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            self.model.save_pretrained(self.out)
        return val_loss

    def sample(self) -> tuple[str, str]:
        """Some validation text, and how the model goes on; its context full, the older half
        goes."""
        context = self.model.context_length
        kept = max(1, context // 2)
        prompt = self.corpus.val[: min(8, kept)].astype(np.int64)
        ids = prompt
        while len(ids) < SAMPLE_TOKENS and context > kept:
            seen = ids[-kept:]
            longest = min(context, len(seen) + SAMPLE_TOKENS - len(ids))
            grown = self.model.generate(
                seen,
                max_length=longest,
                do_sample=True,
                temperature=0.8,
                top_k=50,
                eos_token_id=[],
                tokenizer=self.tokenizer,  # a model's vocabulary may be padded beyond it
                seed=len(ids),
            )
            ids = np.append(ids[:-kept], grown)
        text = self.tokenizer.decode(ids[len(prompt) : SAMPLE_TOKENS])
        return self.tokenizer.decode(prompt), text

    def save(self) -> None:
        """Checkpoint, curve, and the model itself where no validation has saved one."""
        save_checkpoint(self.out, self.config, self.model, self.optimizer, self.rng, self.best_loss)
        if math.isinf(self.best_loss):
            self.model.save_pretrained(self.out)
        self.log.plot()

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
        """One line on stderr, one record in the log."""
        minutes, seconds = divmod(round(seconds_per_step * (self.config.steps - step)), 60)
        hours, minutes = divmod(minutes, 60)
        eta = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        validation = "          " if val_loss is None else f"val {val_loss:.4f}"
        width = len(str(self.config.steps))
        _show(
            f"step {step:{width}}/{self.config.steps}  loss {loss:.4f}  {validation}  lr {lr:.2e}"
            f"  grad norm {norm:6.3f}  {tokens_per_second:,.0f} tokens/s  ETA {eta}",
            sys.stderr,
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
        )


def _show(text: str, stream: TextIO) -> None:
    """Print a line; training goes on where nobody reads it any more."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
