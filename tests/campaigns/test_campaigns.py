"""Damage and kills, as many as are quick.  For more: damage.py beside this file, and -m slow."""

import errno
import functools
import os
import shutil

import numpy as np
import pytest
from campaigns.damage import TEXT, campaign
from campaigns.kills import kill_at, kill_everywhere
from support import write_lines

from numgpt import GPT, CharTokenizer, GPTConfig, Tokenizer, formats, load
from numgpt.training import TrainConfig, Trainer, TuneConfig
from numgpt.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and alarms")


def test_damaged_files_are_refused_in_one_line_that_names_them():
    assert campaign(200) == []


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def options(text, **others) -> TrainConfig:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 2, "warmup": 1}
    intervals = {"steps": 4, "eval_batches": 1, "sample_every": 0, "save_every": 2, "eval_every": 1}
    more = {"dropout": 0.1, "grad_accum": 2, "tokenizer": "char", "data": str(text)}
    return TrainConfig(**sizes | intervals | more | others)


def tuning_options(text, lora_r, **others) -> TuneConfig:
    """Of a tiny model, which is made beside the text, as are its examples."""
    base, data = text.parent / "base", text.parent / "answers.jsonl"
    if not base.exists():
        tokenizer = CharTokenizer.train([TEXT])
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}
        GPT(GPTConfig(**sizes, vocab_size=tokenizer.vocab_size)).save_pretrained(base)
        tokenizer.save_pretrained(base)
        lines = [{"prompt": "the ", "completion": word} for word in ("dog", "fox", "lazy dog")]
        write_lines(data, *lines * 3)
    intervals = {"steps": 4, "sample_every": 0, "save_every": 2, "eval_every": 1, "batch_size": 2}
    more = {"model": str(base), "data": str(data), "val_fraction": 0.3, "grad_accum": 2}
    drops = {"lora_dropout": 0.1} if lora_r else {"dropout": 0.1}
    return TuneConfig(lora_r=lora_r, **intervals | more | drops | others)


KINDS = {
    "text": options,
    "adapter": functools.partial(tuning_options, lora_r=2),
    "whole model": functools.partial(tuning_options, lora_r=0),
}
EVERY_POINT = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "overwrites", "step"),
    [
        *(("text", False, 11), ("text", True, 23)),
        *(("adapter", False, 29), ("adapter", True, 43), ("whole model", False, 37)),
        *(
            pytest.param(kind, overwrites, 1, marks=EVERY_POINT)
            for kind in KINDS
            for overwrites in (False, True)
        ),
    ],
)
def test_a_run_killed_anywhere_is_resumed_or_begun_again(
    text, tmp_path, capsys, monkeypatch, kind, overwrites, step
):
    monkeypatch.setattr("numgpt.training.log.can_plot", lambda: False)
    options = KINDS[kind]
    out, whole = tmp_path / "run", tmp_path / "whole"
    Trainer.start(options(text), whole).run()
    expected = weights(load_checkpoint(whole).model)

    def prepare():
        shutil.rmtree(out, ignore_errors=True)
        if overwrites:
            Trainer.start(options(text, seed=1, steps=1), out).run()
            (out / "log.jsonl").write_text("")

    def work():
        Trainer.start(options(text), out, overwrite=overwrites).run()

    def check(point):
        old = overwrites and load_checkpoint(out).config.seed == 1
        begun = (out / "checkpoint.safetensors").exists() or (out / ".numgpt-complete").exists()
        if begun and not old:
            trainer = Trainer.resume(out)
        else:  # what there was before is as it was
            if old:
                load(out)
            trainer = Trainer.start(options(text), out, overwrite=overwrites)
        trainer.run()
        np.testing.assert_array_equal(weights(trainer.model), expected)
        assert not [name for name in os.listdir(out) if name.startswith(".")]
        load(out)

    assert kill_everywhere(prepare, work, check, step=step) > 30


def weights(model) -> np.ndarray:
    return np.concatenate([array.ravel() for array in model.all_parameters.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_keeps_the_checkpoint_before(text, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("numgpt.training.log.can_plot", lambda: False)
    out, options = tmp_path / "run", KINDS[kind]
    trainer = Trainer.start(options(text), out)
    sync = os.fsync

    def full(descriptor):
        if trainer.optimizer.steps > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*run"):
            trainer.run()
    assert not list(out.glob(".*tmp"))
    resumed = Trainer.resume(out)
    assert resumed.optimizer.steps == 2
    resumed.run()
    Trainer.start(options(text), tmp_path / "whole").run()
    expected = weights(load_checkpoint(tmp_path / "whole").model)
    np.testing.assert_array_equal(weights(resumed.model), expected)
    load(out)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_killed_while_it_is_saved_is_the_old_or_the_new_one(tmp_path, kind):
    old, new = Tokenizer.train([TEXT], 270), Tokenizer.train([TEXT], 290)
    if kind == "char":
        new = CharTokenizer.train([TEXT])

    def prepare():
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
        old.save_pretrained(tmp_path / "t")

    seen = set()

    def check(point):
        found = formats.load_tokenizer(tmp_path / "t")
        assert found.vocab_size in (old.vocab_size, new.vocab_size)
        same = old if found.vocab_size == old.vocab_size else new
        assert found.encode(TEXT) == same.encode(TEXT)
        seen.add(found.vocab_size)

    kill_everywhere(prepare, lambda: new.save_pretrained(tmp_path / "t"), check)
    assert seen == {old.vocab_size, new.vocab_size}


def test_a_model_killed_while_it_is_saved_is_the_old_or_the_new_one(tmp_path):
    sizes = {"n_head": 1, "n_embd": 4, "n_positions": 4, "vocab_size": 5}
    old, new = (GPT(GPTConfig(n_layer=layers, **sizes)) for layers in (1, 2))

    def check(point):
        model = formats.load_model(tmp_path / "m")
        same = {1: old, 2: new}[model.config.n_layer]
        np.testing.assert_array_equal(model.parameters["wte"], same.parameters["wte"])

    def work():
        new.save_pretrained(tmp_path / "m")

    kill_everywhere(lambda: old.save_pretrained(tmp_path / "m"), work, check)


def test_a_process_that_ends_releases_its_run(text, tmp_path):
    """Also one that is killed while it holds the lock."""
    out = tmp_path / "run"
    Trainer.start(options(text, steps=1), out).run()
    assert kill_at(25, lambda: Trainer.resume(out, {"steps": 9}).run())
    assert (out / ".numgpt-lock").exists()
    Trainer.resume(out, {"steps": 2}).run()
    assert not (out / ".numgpt-lock").exists()
