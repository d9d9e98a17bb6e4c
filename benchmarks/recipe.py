"""The char recipe to its end: 4 layers, 4 heads, 128 wide, 12 x 64 characters, 2000 steps on the
Shakespeare text.

Both sides see the same batches in the same order and are validated on the same windows; one after
the other, each with the machine to itself.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time

import numpy as np

import numgpt
from benchmarks.tokenizing import TEXT, shared
from numgpt.training import TrainConfig, Trainer, learning_rate


def main(threads: int) -> None:
    rhythm = {"log_every": 500, "eval_every": 2000, "save_every": 2000, "sample_every": 0}
    config = TrainConfig(data=str(shared(TEXT)), tokenizer="char", **rhythm)
    numgpt.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as directory:
        with contextlib.redirect_stderr(io.StringIO()):
            trainer = Trainer.start(config, directory)
            began = time.perf_counter()
            trainer.run()
        ours = time.perf_counter() - began, trainer.best_loss
        theirs = run_torch(config, trainer, threads)
    print("| char recipe, 2000 steps | seconds | validation loss |")
    print("| --- | --- | --- |")
    print(f"| numgpt | {ours[0]:.1f} | {ours[1]:.4f} |")
    print(f"| PyTorch | {theirs[0]:.1f} | {theirs[1]:.4f} |")
    print(f"| ratio | {theirs[0] / ours[0]:.2f} | |")


def run_torch(config: TrainConfig, trainer: Trainer, threads: int) -> tuple[float, float]:
    """The same loop in PyTorch -> seconds, validation loss."""
    import torch

    from benchmarks.torch_gpt import TorchGPT, adamw

    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    corpus, rng = trainer.task.corpus, np.random.default_rng(config.seed)
    model = TorchGPT(
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.block_size,
        trainer.tokenizer.vocab_size,
    )
    optimizer = adamw(model, config.lr, config.beta2)
    began = time.perf_counter()
    for step in range(config.steps):
        ids, targets = corpus.batch(rng, config.batch_size, config.block_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, config.steps, config.lr, config.lowest_lr, config.warmup
            )
        optimizer.zero_grad(set_to_none=True)
        model.loss(torch.from_numpy(ids), torch.from_numpy(targets)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
    batches = corpus.validation_batches(config.eval_batches, config.batch_size, config.block_size)
    with torch.inference_mode():
        losses = [model.loss(torch.from_numpy(i), torch.from_numpy(t)).item() for i, t in batches]
    return time.perf_counter() - began, float(np.mean(losses))
