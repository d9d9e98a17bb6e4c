"""Runs that can't go on, or begin, each with what is said of it: one line, and nothing changed."""

import json
import shutil

import numpy as np
import pytest
from support import refused, talk, write_lines
from training.runs import shipped
from training.test_directories import TEXT, content
from training.test_directories import start as start_text
from training.test_tuning import start as start_tuning

import numgpt
from numgpt import CharTokenizer
from numgpt.training import Trainer
from numgpt.training.checkpoint import CHECKPOINT_FILE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with the data, a base, and a finished run of each kind."""
    place = tmp_path_factory.mktemp("runs")
    (place / "text.txt").write_text(TEXT)
    start_text(str(place / "text.txt"), place / "text").run()
    start_text(str(place / "text.txt"), place / "bpe", tokenizer="bpe", vocab_size=300).run()
    write_lines(place / "talks.jsonl", *[{"messages": talk("Who?", "I, of course.")}] * 12)
    (place / "short.txt").write_text("too short")
    (place / "empty.txt").write_text("")
    (place / "one.jsonl").write_text('{"text": "To be"}\n')
    base = shipped(place / "base")
    start_tuning(str(place / "talks.jsonl"), place / "tuned", model=base).run()
    return place


@pytest.fixture
def runs(made, tmp_path):
    """… for one test to change."""
    shutil.copytree(made, tmp_path / "whole")
    yield made
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "whole", made)


def base(change):
    """The base that an adapter was made for, changed."""

    def write(run):
        model, _ = numgpt.load(run.parent / "base")
        change(model.parameters["wte"])
        model.save_pretrained(run.parent / "base")

    return write


def tokens(change):
    def write(run):
        change(np.fromfile(run / "tokens.bin", "<u2")).tofile(run / "tokens.bin")

    return write


def data(text):
    """The tokens are gone, and the data are others."""

    def write(run):
        (run / "tokens.bin").unlink()
        (run.parent / "text.txt").write_text(text)
        (run.parent / "talks.jsonl").write_text(text)

    return write


def cut_off(run):
    path = run / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-10])


def other_characters(run):
    CharTokenizer(sorted(set(TEXT), reverse=True)).save_pretrained(run)


def other_merges(run):
    fields = json.loads((run / "tokenizer.json").read_text())
    merges = fields["model"]["merges"]
    merges.append(merges.pop(-2))
    (run / "tokenizer.json").write_text(json.dumps(fields))


def gone(run):
    data("")(run)
    (run.parent / "talks.jsonl").unlink()


def as_it_is(run):
    pass


RESUMED = [
    # What can't change.
    ("text", as_it_is, {"n_embd": 32}, "n_embd=32"),
    ("text", as_it_is, {"steps": None}, "steps=None is not an option of such a run"),
    ("text", as_it_is, {"foo.bar": 1}, "foo.bar=1 is not an option"),
    ("text", as_it_is, {"data": ["t.txt", 3]}, r"data=\['t.txt', 3\]: expected text, or a list of"),
    ("text", as_it_is, {"lr": np.float32(1e-3)}, "lr=.*: expected a number above 0"),
    ("tuned", as_it_is, {"epochs": 9.0}, "and that cannot change"),
    ("tuned", as_it_is, {"lora_alpha": 8}, "and that cannot change"),
    ("tuned", as_it_is, {"batch_size": 2}, "and that cannot change"),
    ("tuned", as_it_is, {"batch_size": 10**12}, "batch_size=.* cannot change"),
    ("tuned", as_it_is, {"data": "other"}, "and that cannot change"),
    # What is not what the run began with.
    ("text", shutil.rmtree, {}, "nothing to resume"),
    ("text", cut_off, {}, CHECKPOINT_FILE),
    ("text", other_characters, {}, "its tokenizer is not the one that the run began with"),
    ("bpe", other_merges, {}, "its tokenizer is not the one that the run began with"),
    ("text", tokens(lambda ids: ids[::-1]), {}, r"tokens\.bin .*the run began with.*start a new"),
    ("text", tokens(lambda ids: ids[:99]), {}, r"tokens\.bin .*the run began with.*start a new"),
    ("text", data(TEXT + "dog"), {}, r"tokens\.bin .*the run began with.*start a new run"),
    ("tuned", data('{"text": "a"}\n'), {}, "the data make other tokens than the run began with"),
    ("tuned", gone, {}, "tokens.bin is missing, and so are the data: "),
    ("tuned", base(lambda wte: wte[0].fill(1)), {}, "base .* has other weights .*those back"),
    ("tuned", base(lambda wte: wte[300:500].fill(0)), {}, "has other weights than the run"),
    ("tuned", lambda run: shutil.rmtree(run.parent / "base"), {}, "base is missing, put it back"),
]
NAMES = [f"{number}: {row[3][:40]}" for number, row in enumerate(RESUMED)]


@pytest.mark.parametrize(("kind", "change", "changes", "message"), RESUMED, ids=NAMES)
def test_a_run_that_can_not_go_on(runs, kind, change, changes, message):
    run = runs / kind
    change(run)
    before = content(run)
    refused(lambda: Trainer.resume(run, {"steps": 9} | changes), message)
    assert content(run) == before


STARTED = [
    (start_text, "absent*", {}, r"absent\*"),
    (start_text, "short.txt", {}, r"9 tokens.*block_size=8"),
    (start_text, "empty.txt", {}, "text is empty"),
    *[(start_text, nothing, {}, "data='': no such file, dir") for nothing in ("", [""])],
    (start_text, [], {}, r"data=\[\]: expected text, or a list of texts"),
    (start_text, "text.txt", {"keep": "worst"}, "keep='worst': expected best or last"),
    (
        start_tuning,
        "talks.jsonl",
        {"val_data": "one.jsonl"},
        r"one\.jsonl, line 1 has text, the examples to train on messages: held",
    ),
    (
        start_tuning,
        "talks.jsonl",
        {"batch_size": 10**12, "max_length": 64},
        r"batch_size=\d+ of up to max_length=64 tokens, in",
    ),
]
NAMES = [f"{number}: {row[3][:40]}" for number, row in enumerate(STARTED)]


@pytest.mark.parametrize(("start", "data", "options", "message"), STARTED, ids=NAMES)
def test_a_run_that_can_not_begin(made, monkeypatch, start, data, options, message):
    monkeypatch.chdir(made)
    refused(lambda: start(data, "new", **options), message)
    assert not (made / "new").exists()


def test_an_adapter_whose_base_is_gone(runs):
    shutil.rmtree(runs / "base")
    refused(lambda: numgpt.load(runs / "tuned"), "is an adapter of .* which is not there.*adapter")
