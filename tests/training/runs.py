"""What tests of runs share: their logs, runs that are interrupted, steps that are cut."""

import collections
import json
from functools import partial
from itertools import pairwise

import numpy as np
from support import run_to

import numgpt
from numgpt.training import Trainer
from numgpt.training.checkpoint import load_checkpoint


def begin(kind, data, out, overwrite=False, **options):
    """A short run of this kind on the model that ships, each step of which is reported."""
    usual = {"model": "shakespeare", "data": data, "steps": 6, "batch_size": 4}
    usual |= {"log_every": 1, "sample_every": 0}
    return Trainer.start(kind(**usual | options), out, overwrite=overwrite)


def shipped(directory, **changes):
    """The model that ships, in a directory of its own, its tokenizer changed -> the directory."""
    model, tokenizer = numgpt.load("shakespeare")
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def told(trainer):
    """What a run tells while it is made."""
    said = []
    trainer.run(lambda record: said.append(str(record)))
    return said


def counted(monkeypatch, *functions):
    """How often these functions are called, of their modules, from now on."""
    counts = collections.Counter()

    def counting(name, function, *arguments, **options):
        counts[name] += 1
        return function(*arguments, **options)

    for module, name in functions:
        monkeypatch.setattr(module, name, partial(counting, name, getattr(module, name)))
    return counts


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
    return same_end(tmp_path / "whole", tmp_path / "parts")


def same_end(whole, parts):
    """Two runs have left the same weights, moments and reports -> both checkpoints."""
    weights = [path.relative_to(whole) for path in whole.rglob("*model.safetensors")]
    assert weights
    for path in weights:
        assert (whole / path).read_bytes() == (parts / path).read_bytes(), path
    for one, other in zip(logged(whole), logged(parts), strict=True):
        del one["tokens_per_second"], other["tokens_per_second"]
        assert one == other
    return same_checkpoint(whole, parts)


def same_checkpoint(*runs):
    """Two runs have come to the same, bit for bit -> both checkpoints."""
    a, b = ends = [load_checkpoint(run) for run in runs]
    np.testing.assert_array_equal(a.model.parameters.flat, b.model.parameters.flat)
    np.testing.assert_array_equal(a.optimizer.m, b.optimizer.m)
    np.testing.assert_array_equal(a.optimizer.v, b.optimizer.v)
    assert a.optimizer.steps == b.optimizer.steps
    assert a.rng.bit_generator.state == b.rng.bit_generator.state
    assert a.model.parameters.layout == b.model.parameters.layout
    for name in ("best_loss", "unreported", "unreported_steps", "tokens"):
        assert getattr(a, name) == getattr(b, name), name
    return ends


def cuts(examples, *ways):
    """The first examples in batches, which end at these numbers, for each way to cut them."""
    return [[examples.padded(np.arange(*ends)) for ends in pairwise([0, *way])] for way in ways]


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
