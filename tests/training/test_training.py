"""Training: it learns, resumes bit for bit, survives kills, and refuses early what would fail."""

import errno
import math
import random
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from support import examples, run_to
from training.runs import ends_bit_for_bit, logged, same_checkpoint, same_end

from numgpt import GPT, CharTokenizer, GPTConfig, formats
from numgpt.cli.config_file import read_toml
from numgpt.data.corpus import encode_corpus, find_documents, open_corpus
from numgpt.evaluation.perplexity import sliding_window_loss
from numgpt.files import TEMPORARY
from numgpt.runtime import multiplies_rounded
from numgpt.training import TrainConfig, Trainer, TrainingError, pretraining
from numgpt.training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from numgpt.training.config import options_of

OPTIONS = options_of(TrainConfig)
TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps on.\n" * 60
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 4}
TINY |= {"eval_batches": 2, "log_every": 5, "eval_every": 5, "save_every": 4, "sample_every": 0}
TINY |= {"lr": 1e-2, "min_lr": 1e-4, "warmup": 3, "tokenizer": "char"}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def start(text_file, out, **options) -> Trainer:
    return Trainer.start(TrainConfig(**({"data": text_file} | TINY | options)), out)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen3"])
def test_learns(text_file, tmp_path, capsys, arch):
    trainer, told = start(text_file, tmp_path / "run", steps=150, sample_every=150, arch=arch), []
    trainer.run(told.append)
    records = logged(tmp_path / "run")
    assert records[0]["loss"] == pytest.approx(math.log(trainer.tokenizer.vocab_size), rel=0.1)
    assert records[-1]["val_loss"] < 1.6
    names = {"step", "loss", "val_loss", "lr", "grad_norm", "tokens_per_second"}
    assert names <= records[-1].keys()
    assert str(told[-3]).startswith("step 150/150  loss ")
    assert str(told[-2]) == "step 150 is saved"
    assert str(told[-1]).startswith("--- step 150, after '")
    assert capsys.readouterr() == ("", "")  # the loop prints nothing
    model, tokenizer = formats.load(tmp_path / "run")  # the best model, ready to use
    ids = trainer.task.corpus.val[:100].astype(np.int64)
    assert sliding_window_loss(model, ids) < 2
    assert tokenizer.decode(ids[:5]) == trainer.tokenizer.decode(ids[:5])


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_products_in_bfloat16_learn_as_those_in_float32(text_file, tmp_path, arch):
    curves = {}
    for dtype in ("float32", "bfloat16"):
        trainer, told = start(text_file, tmp_path / dtype, steps=60, dtype=dtype, arch=arch), []
        trainer.run(told.append)
        slow = any("is no faster here" in str(record) for record in told)
        assert slow == (dtype == "bfloat16" and not multiplies_rounded())
        curves[dtype] = np.array([record["loss"] for record in logged(tmp_path / dtype)])
        assert trainer.model.parameters.dtype == trainer.optimizer.m.dtype == np.float32
    apart = np.abs(curves["float32"] - curves["bfloat16"])
    assert 0 < apart.max() < 0.02
    assert curves["bfloat16"][-1] < 0.8 * curves["bfloat16"][0]
    other = Trainer.resume(tmp_path / "bfloat16", {"steps": 61, "dtype": "float32"})
    other.run()  # what products are made in may change


HARD = {"dropout": 0.2, "grad_accum": 3, "steps": 17}


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "char"},
        {"tokenizer": "bpe", "vocab_size": 280},
        {"arch": "llama", "n_kv_head": 1},
        {"dtype": "bfloat16"},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(text_file, tmp_path, options):
    ends_bit_for_bit(partial(start, text_file), tmp_path, (1, 6, 11), **HARD | options)


def steps_done(out) -> int:
    return load_checkpoint(out).optimizer.steps


@examples(6, 20)
def test_a_killed_run_loses_nothing(text_file, tmp_path, examples):
    """SIGKILL at random moments, a checkpoint at every step: the state is that of one quiet run."""
    options = HARD | {"steps": 100_000, "save_every": 1, "eval_every": 3}
    out = tmp_path / "killed"
    run_to(start(text_file, out, **options), 1)  # something to resume
    command = [sys.executable, "-m", "numgpt", "train", "--resume", str(out)]
    rng = random.Random(0)
    done = 1
    for round_number in range(examples):
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        process = subprocess.Popen(command, **pipes, text=True)
        if round_number % 2:  # else also while it starts
            next(line for line in process.stderr if "resumed" in line)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        before, done = done, steps_done(out)  # it loads, whatever the moment was
        assert done >= before
    assert done > 1
    run_to(start(text_file, tmp_path / "quiet", **options), done)
    same_checkpoint(tmp_path / "quiet", out)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(text_file, tmp_path):
    trainer = start(text_file, tmp_path / "run", steps=20)
    trainer.config.steps = 8
    trainer.run()
    before = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    trainer.config.steps = 20
    trainer.model.parameters["wte"][:] = np.inf
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="at step 9 the loss is"):
        trainer.run()
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == before


def test_a_disk_too_small_is_reported_before_training(text_file, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="free some space"):
        start(text_file, tmp_path / "run")


def test_a_directory_that_can_not_be_written_is_reported(text_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        start(text_file, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("arch", "dropout", "context"),
    [
        ("gpt2", "attn_pdrop", "n_positions"),
        ("llama", "attention_dropout", "max_position_embeddings"),
    ],
)
def test_fine_tunes(text_file, tmp_path, arch, dropout, context):
    start(text_file, tmp_path / "first", steps=60, arch=arch).run()
    before = load_checkpoint(tmp_path / "first").best_loss
    begin = partial(start, text_file, init_from=str(tmp_path / "first"))
    tuned = begin(tmp_path / "tuned", steps=20, dropout=0.1)
    assert getattr(tuned.model.config, dropout) == 0.1
    assert tuned.validate() == pytest.approx(before, rel=1e-6)
    tuned.run()
    assert load_checkpoint(tmp_path / "tuned").best_loss <= before + 0.05
    first = formats.load_model(tmp_path / "first")
    assert tuned.model.parameters.layout.keys() == first.parameters.layout.keys()
    with pytest.raises(ValueError, match=f"{context}=8"):
        begin(tmp_path / "more", block_size=9)


def test_resume_takes_what_can_change(text_file, tmp_path):
    start(text_file, tmp_path / "run", steps=4).run()
    changes = {"n_embd": 16, "lr": 5e-3, "dropout": 0.25, "steps": 8}
    resumed = Trainer.resume(tmp_path / "run", changes)
    assert resumed.config.lr == 5e-3
    assert resumed.model.config.attn_pdrop == resumed.config.dropout == 0.25


def encode(data, tokenizer, out):
    return open_corpus(out, encode_corpus(find_documents(data), tokenizer, out), 0.25, 8)


def test_a_corpus_is_its_text_in_two_parts(text_file, tmp_path):
    tokenizer = start(text_file, tmp_path / "a").tokenizer
    corpus = encode(text_file, tokenizer, tmp_path)
    assert len(corpus.val) == len(TEXT) // 4
    assert tokenizer.decode(np.concatenate([corpus.train, corpus.val])) == TEXT
    assert corpus.train.dtype == np.uint16


def test_documents_are_separated_by_the_end_of_text_token(tmp_path):
    for name in ("a.txt", "b.txt", ".hidden"):
        (tmp_path / name).write_text(TEXT if name == "a.txt" else "dog sleeps. " * 40)
    options = TrainConfig(data=str(tmp_path), tokenizer="bpe", vocab_size=280)
    tokenizer = pretraining.make_tokenizer(options, find_documents(options.data))
    out = tmp_path / ".out"
    out.mkdir()
    both = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    for data in (str(tmp_path), str(tmp_path / "*.txt"), both):
        corpus = encode(data, tokenizer, out)
        text = tokenizer.decode(np.concatenate([corpus.train, corpus.val]))
        assert text == TEXT + "<|endoftext|>" + "dog sleeps. " * 40


def test_batches_are_windows_and_their_successors(text_file, tmp_path):
    corpus = start(text_file, tmp_path / "a").task.corpus
    ids, targets, tokens, _ = corpus.batch(np.random.default_rng(0), 5, 8)
    assert tokens == 40
    assert ids.shape == targets.shape == (5, 8)
    np.testing.assert_array_equal(ids[:, 1:], targets[:, :-1])
    first, again = (list(corpus.validation_batches(3, 4, 8)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(first[-1].targets[-1], corpus.val[-8:])  # to the very end


def test_toml_holds_the_same_names(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("n_layer = 2\nlr = 1e-3\n")
    assert read_toml(path, OPTIONS) == {"n_layer": 2, "lr": 1e-3}
    path.write_text("n-layer = 2\n")
    assert read_toml(path, OPTIONS) == {"n_layer": 2}
    for text, message in (
        ("n_layers = 2\n", r"'n_layers' is not an option; did you mean 'n_layer'\?"),
        ("[model]\nn_layer = 2\n", "section"),
        ("n_layer = \n", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_toml(path, OPTIONS)
    assert {"n_layer", "grad_accum", "beta2", "eval_every", "init_from"} <= OPTIONS.keys()


def test_sliding_window_gives_every_token_its_context(small_model):
    """Against predicting each token by itself, from all the context that its window holds."""
    ids = np.random.default_rng(0).integers(61, size=45)
    context, stride = 10, 4
    losses = []
    for target in range(1, len(ids)):
        window = 0 if target <= context else math.ceil((target - context) / stride)
        stop = min(context + window * stride, len(ids) - 1)
        logits = small_model(ids[max(0, stop - context) : target])[0, -1].astype(np.float64)
        losses.append(
            np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[target]]
        )
    assert sliding_window_loss(small_model, ids, context, stride) == pytest.approx(
        np.mean(losses), rel=1e-5
    )
    whole = small_model.loss(ids[:20], ids[1:21])
    assert sliding_window_loss(small_model, ids[:21]) == pytest.approx(whole, rel=1e-6)
    for bad in ({"context": 33}, {"context": 8, "stride": 9}, {"stride": 0}):
        with pytest.raises(ValueError, match="expected 1 to"):
            sliding_window_loss(small_model, ids, **bad)
    with pytest.raises(ValueError, match="at least two"):
        sliding_window_loss(small_model, ids[:1])


def test_a_run_goes_on_without_its_text(text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, moved = (start("text.txt", tmp_path / name, steps=12) for name in ("whole", "moved"))
    whole.run()
    run_to(moved, 5)
    (tmp_path / "text.txt").write_text("another text")
    monkeypatch.chdir("/")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / "moved" / f".checkpoint.safetensors.{process.pid}{TEMPORARY}"
    left.write_text("left by a kill")
    (tmp_path / "moved" / ".notes.tmp").write_text("somebody's")
    Trainer.resume(tmp_path / "moved").run()
    same_end(tmp_path / "whole", tmp_path / "moved")
    assert [path.name for path in (tmp_path / "moved").glob(".*")] == [".notes.tmp"]


def test_a_trainer_does_not_run_over_what_another_made_of_its_run(text_file, tmp_path):
    trainer = start(text_file, tmp_path / "run", steps=2)
    trainer.run()
    trainer.run()
    Trainer.resume(tmp_path / "run", {"steps": 4}).run()
    trainer.config.steps = 3
    with pytest.raises(
        ValueError, match=r"another checkpoint than this run's: Trainer\.resume goes"
    ):
        trainer.run()
    assert load_checkpoint(tmp_path / "run").optimizer.steps == 4


def test_a_trainer_runs_again_after_a_full_disk(text_file, tmp_path, monkeypatch):
    trainer = start(text_file, tmp_path / "run", steps=2)

    def full(directory):
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    monkeypatch.setattr(trainer, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    monkeypatch.undo()
    trainer.run()
    assert (tmp_path / "run/last/model.safetensors").is_file()


def test_a_sample_is_no_longer_than_it_is_shown(text_file, tmp_path, monkeypatch):
    """A fine-tuned model may have a context of thousands of tokens."""
    long = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=5000, vocab_size=99))
    long.save_pretrained(tmp_path / "long")
    CharTokenizer.train([TEXT]).save_pretrained(tmp_path / "long")
    trainer = start(text_file, tmp_path / "run", init_from=str(tmp_path / "long"))
    calls = []
    generate = GPT.generate
    monkeypatch.setattr(
        GPT, "generate", lambda *a, **k: calls.append(k["max_length"]) or generate(*a, **k)
    )
    prompt, text = trainer.task.sample()
    assert len(prompt + text) == 200
    assert calls == [200]
