"""What tests of runs share: their logs, runs that are interrupted, steps that are cut."""

import json
from itertools import pairwise

import numpy as np
from support import run_to

from numgpt.training import Trainer
from numgpt.training.checkpoint import load_checkpoint


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def moved(trainer, scale=0.05):
    """Weights that are not those of the reference."""
    for name, array in trainer.model.adapter.parameters.items():
        seed = sum(name.encode())
        array += np.random.default_rng(seed).normal(0, scale, array.shape).astype(np.float32)


def ends_bit_for_bit(start, tmp_path, stops, resumed=lambda trainer: None, **options):
    """A run in parts leaves the weights, moments and reports of a whole one -> both checkpoints."""
    start(tmp_path / "whole", **options).run()
    trainer = start(tmp_path / "parts", **options)
    for stop in stops:
        run_to(trainer, stop)
        trainer = Trainer.resume(tmp_path / "parts")
        resumed(trainer)
    trainer.run()
    whole, parts = runs = tmp_path / "whole", tmp_path / "parts"
    weights = [path.relative_to(whole) for path in whole.rglob("*model.safetensors")]
    assert weights
    for path in weights:
        assert (whole / path).read_bytes() == (parts / path).read_bytes(), path
    ends = [load_checkpoint(run) for run in runs]
    np.testing.assert_array_equal(ends[0].optimizer.m, ends[1].optimizer.m)
    np.testing.assert_array_equal(ends[0].optimizer.v, ends[1].optimizer.v)
    for one, other in zip(*map(logged, runs), strict=True):
        del one["tokens_per_second"], other["tokens_per_second"]
        assert one == other
    return ends


def pieces(*stops):
    """The numbers from 0 up, as far as each stop."""
    return [np.arange(start, stop) for start, stop in pairwise([0, *stops])]


def however_cut(task, model, cuts, rel=1e-5):
    """Of each way to cut a step into batches -> its loss and metrics; the gradients are equal."""
    found, first = [], None
    for batches in cuts:
        totals, gradients, sums = task.totals(model, batches), None, {}
        for batch in batches:
            part, gradients = task.gradients(model, batch, totals, gradients)
            sums = {name: sums.get(name, 0) + value for name, value in part.items()}
        found.append((sums["loss"], task.metrics(sums)))
        first = gradients.flat.copy() if first is None else first
        assert np.abs(gradients.flat - first).max() < rel * np.abs(first).max()
    return found
