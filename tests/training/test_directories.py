"""What a run finds in its directory and leaves there: nothing that is somebody's is lost."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import is_mapped
from training.runs import counted, logged, same_checkpoint

import numgpt
from numgpt import GPT, GPTConfig, Tokenizer, formats
from numgpt.data import corpus
from numgpt.data.corpus import find_texts
from numgpt.data.records import find_record_files
from numgpt.files import LOCK_FILE, TEMPORARY, DirectoryLock
from numgpt.training import Note, Saved, TrainConfig, Trainer, loop, pretraining, starting
from numgpt.training.checkpoint import load_checkpoint

TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps on.\n" * 30
TINY = ["--n-layer=1", "--n-head=2", "--n-embd=8", "--block-size=8", "--batch-size=2"]
TINY += ["--eval-batches=1", "--sample-every=0"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def train(text):
    """A command that trains two steps, but for its directory."""
    return ("train", "--data", text, *TINY, "--steps=2", "--out")


def content(directory) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def model_directory(directory):
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 16, "vocab_size": 280}
    GPT(GPTConfig(**sizes)).save_pretrained(directory)
    Tokenizer.train([TEXT], 280).save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"),
        *("model.safetensors.index.json", "generation_config.json", "tokenizer.json"),
        *("merges.txt", "special_tokens_map.json", "checkpoint.safetensors", "tokens.bin"),
        *("log.jsonl", "loss.png"),
    ],
)
def test_a_new_run_replaces_nothing_unless_told_to(works, refuses, train, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    (out / ".notes.tmp").write_text("mine")
    (out / "notes.txt").write_text("mine")
    before = content(out)
    err = refuses(*train, out)
    assert err.count("\n") == 1
    assert "--overwrite" in err
    assert name in err
    assert content(out) == before
    works(*train, out, "--overwrite")
    assert {".notes.tmp", "notes.txt"} <= content(out).keys()
    formats.load(out)
    assert (
        name in ("config.json", "tokenizer.json", "merges.txt")
        or name.startswith(("checkpoint", "tokens", "log", "loss"))
        or not (out / name).exists()
    )


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_nowhere_is_somebodys(refuses, train, tmp_path):
    for name in ("checkpoint.safetensors", "tokenizer.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "unplugged")
        assert f"holds a {name} already" in refuses(*train, tmp_path / "run")
        (tmp_path / "run" / name).unlink()


@pytest.mark.parametrize("command", ["train", "tokenizer train"])
def test_files_that_come_meanwhile_are_not_replaced(
    refuses, train, text, tmp_path, monkeypatch, command
):
    out = tmp_path / "out"
    learn = Tokenizer.train

    def slowly(*arguments, **options):
        (out / "tokenizer.json").write_text("precious")
        return learn(*arguments, **options)

    monkeypatch.setattr(Tokenizer, "train", slowly)
    if command == "train":
        err = refuses(*train, out, "--vocab-size=280")
    else:
        err = refuses(*command.split(), text, "--vocab-size=280", "--out", out)
    assert "tokenizer" in err
    assert "already" in err
    assert content(out) == {"tokenizer.json": b"precious"}


def test_all_files_of_a_run_are_its_own_from_the_beginning(text, tmp_path):
    """So that whatever it replaces later is what it has written."""
    trainer = start(text, tmp_path / "run", tokenizer="bpe", vocab_size=280)
    before = set(content(tmp_path / "run")) - {LOCK_FILE}
    assert formats.load(tmp_path / "run")[0].num_parameters() == trainer.model.num_parameters()
    trainer.run()
    after = {name for name in content(tmp_path / "run") if not name.startswith("last/")}
    assert after - {"loss.png"} == before


def test_files_that_are_not_in_the_way_stay(works, train, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".notes.tmp").write_text("mine")
    (out / "notes.txt").write_text("mine")
    works(*train, out)
    assert (out / ".notes.tmp").read_text() == (out / "notes.txt").read_text() == "mine"


def test_a_model_is_not_tuned_over_itself_unless_told_to(works, refuses, text, tmp_path):
    model = model_directory(tmp_path / "m")
    (model / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 3}')
    before = content(model)
    flags = ("train", "--init-from", model, "--out", model, "--data", text, "--steps=1")
    err = refuses(*flags)
    assert content(model) == before
    assert "holds a" in err
    assert "--overwrite" in err
    works(*flags, "--overwrite", "--sample-every=0")
    assert load_checkpoint(model).config.block_size == 16
    formats.load(model)


@pytest.mark.parametrize("flag", ["--out", "--resume"])
def test_an_empty_name_is_not_the_working_directory(refuses, text, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    err = refuses("train", "--data", text, flag, "", *TINY)
    assert f'{flag} "": name a directory' in err
    refuses("tokenizer", "train", text, "--vocab-size=270", "--out", "")
    assert content(tmp_path) == before


def test_refused_runs_leave_nothing(refuses, train, tmp_path):
    for flags in (("--block-size=99999",), ("--val-fraction=0.0001",), ("--init-from=./absent",)):
        refuses(*train, tmp_path / "a/b/c", *flags)
        assert not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    refuses(*train, tmp_path / "there", "--block-size=99999")
    assert content(tmp_path / "there") == {}


def test_a_tokenizer_does_not_replace_a_models(works, refuses, text, tmp_path):
    model = model_directory(tmp_path / "m")
    before = content(model)
    flags = ("tokenizer", "train", text, "--vocab-size=290", "--out", model)
    assert "--overwrite" in refuses(*flags)
    assert content(model) == before
    works(*flags, "--overwrite")
    assert formats.load_tokenizer(model).vocab_size == 290
    assert (model / "model.safetensors").read_bytes() == before["model.safetensors"]
    (tmp_path / "empty.txt").write_text("")
    flags = ("--vocab-size=300", "--out", tmp_path / "t")
    assert "empty" in refuses("tokenizer", "train", tmp_path / "empty.txt", *flags)
    assert not (tmp_path / "t").exists()


def test_saving_keeps_what_it_does_not_write(tmp_path):
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5))
    model.config.eos_token_id = 4
    (tmp_path / "pytorch_model.bin").write_text("another")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 3}')
    model.save_pretrained(tmp_path)
    assert (tmp_path / "pytorch_model.bin").read_text() == "another"
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["temperature"], saved["eos_token_id"]) == (0.5, 4)
    assert formats.load_model(tmp_path).config.eos_token_id == 4


# --- one process a directory ---


def start(text, out, report=None, overwrite=False, **options) -> Trainer:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 2}
    intervals = {"steps": 2, "eval_batches": 1, "sample_every": 0, "tokenizer": "char"}
    config = TrainConfig(**{"data": text} | sizes | intervals | options)
    return Trainer.start(config, out, overwrite, report)


def test_a_directory_in_use_is_refused_and_left_alone(works, refuses, text, tmp_path):
    out = tmp_path / "run"
    live = start(text, out, steps=4)
    staged = out / f".checkpoint.safetensors.{os.getpid()}.numgpt-tmp"
    staged.write_text("being written")
    before = content(out)
    for flags in (("--resume", out, "--steps=1"), ("--out", out, "--data", text, "--overwrite")):
        err = refuses("train", *flags, status=1)
        assert f"in use by process {os.getpid()}" in err
        assert content(out) == before
    tokenizer = ("tokenizer", "train", text, "--vocab-size=300", "--out", out, "--overwrite")
    assert "in use by process" in refuses(*tokenizer, status=1)
    assert content(out) == before
    staged.unlink()
    live.run()
    before = content(out)
    assert "holds a training run" in refuses(*tokenizer)
    assert content(out) == before
    works("train", "--resume", out)
    assert not (out / LOCK_FILE).exists()


def begun(text, out, *flags, before=()):
    """A run in a process of its own, which has made a step."""
    command = [*before, sys.executable, "-m", "numgpt", "train", "--data", text, "--out", out]
    process = subprocess.Popen(
        [*command, *TINY, "--steps=1000000", *flags],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    next(line for line in process.stderr if line.startswith("step"))
    return process


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_killed_process_holds_no_lock(text, tmp_path):
    process = begun(text, tmp_path / "run")
    with pytest.raises(BlockingIOError, match=f"in use by process {process.pid} "):
        Trainer.resume(tmp_path / "run")
    process.kill()
    process.communicate()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    Trainer.resume(tmp_path / "run", {"steps": 3}).run()


def test_a_lock_that_is_given_up_and_taken_again(tmp_path):
    first, second = DirectoryLock(tmp_path / "d"), DirectoryLock(tmp_path / "d")
    first.acquire()
    first.acquire()
    with pytest.raises(BlockingIOError):
        second.acquire()
    first.release()
    assert not (tmp_path / "d").exists()  # it was made for the lock, and is empty
    second.acquire()
    assert second.held
    del second
    first.acquire()
    first.release()


# --- the tokens are those of the run ---


def test_tokens_that_are_gone_are_made_again(text, tmp_path):
    start(text, tmp_path / "run").run()
    path = tmp_path / "run" / "tokens.bin"
    before = path.read_bytes()
    path.unlink()
    Trainer.resume(tmp_path / "run", {"steps": 3}).run()
    assert path.read_bytes() == before


def test_a_damaged_log_is_set_aside(text, tmp_path):
    start(text, tmp_path / "run").run()
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_text()
    log.write_text(lines + '{"a": 1}\n[]\nnonsense\n' + lines[:20])
    damaged = log.read_bytes()
    told = []
    Trainer.resume(tmp_path / "run", {"steps": 3}, report=told.append).run()
    assert "lines that are no reports (3): it is kept as log.damaged.jsonl" in str(told[0])
    assert (tmp_path / "run" / "log.damaged.jsonl").read_bytes() == damaged
    assert [record["step"] for record in logged(tmp_path / "run")] == [1, 2, 3]


# --- signals ---


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_signals_save_and_end(text, tmp_path, name, status):
    out = tmp_path / "run"
    process = begun(text, out, "--tokenizer=char", "--save-every=1000000")
    time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "stopped and saved at step" in err
    assert "Traceback" not in err
    assert f"numgpt train --resume {out}" in err
    done = load_checkpoint(out).optimizer.steps
    assert done >= 1
    Trainer.resume(out, {"steps": done + 3}).run()
    assert load_checkpoint(out).optimizer.steps == done + 3


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_nohup_ignores_stays_ignored(text, tmp_path):
    process = begun(text, tmp_path / "run", "--log-every=1", before=["nohup"])
    process.send_signal(signal.SIGHUP)
    seen = [next(process.stderr) for _ in range(5)]
    assert all(line.startswith("step") for line in seen)
    process.kill()
    process.communicate()


# --- options and data ---


def test_tuning_has_defaults_of_its_own(tmp_path):
    from_nothing, tuned = TrainConfig(), TrainConfig(init_from="m")
    assert (from_nothing.lr, from_nothing.lowest_lr) == (1e-3, 1e-4)
    assert tuned.lr == 5e-5
    assert tuned.lowest_lr == pytest.approx(5e-6)
    assert tuned.steps < from_nothing.steps
    assert from_nothing.block_size == 64
    assert tuned.block_size is None
    assert TrainConfig(lr=2e-5).lowest_lr == pytest.approx(2e-6)
    assert TrainConfig(lr=2e-5, min_lr=1e-5).lowest_lr == 1e-5


def test_a_directory_of_data_leaves_out_what_is_no_text(text, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text(TEXT)
    (data / "picture.png").write_bytes(b"\x89PNG\r\n\0\0")
    (data / "latin.txt").write_bytes("ä".encode("latin-1"))
    told = []
    trainer = start(str(data), data / "run", told.append)
    assert re.search(r"left out: 2 without UTF-8 text .*latin.*png", str(told[0]))
    assert len(trainer.task.corpus.train) + len(trainer.task.corpus.val) == len(TEXT)


def test_all_that_is_left_out_is_told_by_reason(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"\0")
    for name in ("run/checkpoint.safetensors", "run/last/notes.txt", ".git/HEAD", "deep/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.warns(UserWarning, match="left out") as told:
        assert find_texts(str(tmp_path)) == [tmp_path / "deep/a.txt"]
    (message,) = (str(warning.message) for warning in told)
    assert "1 hidden (" in message
    assert "2 of a run (" in message
    assert "5 without UTF-8 text (" in message
    assert "2.png and 2 more" in message
    message = r"1 hidden .*; 6 without JSON lines .*; 2 of a run"
    with (
        pytest.warns(UserWarning, match=message),
        pytest.raises(FileNotFoundError, match="no JSON lines in it"),
    ):
        find_record_files(str(tmp_path))


def test_text_of_other_systems_is_read_as_any(text, tmp_path):
    """A byte order mark and CRLF are no part of it."""
    other = tmp_path / "other.txt"
    other.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    told = []
    trainer = start(str(other), tmp_path / "other", told.append)
    assert sum("line ends" in str(note) for note in told) == 1
    assert sum("byte order mark" in str(note) for note in told) == 1
    assert trainer.state.tokens == start(text, tmp_path / "run").state.tokens


def test_a_glob_leaves_out_what_is_no_text_to_its_end(text, tmp_path):
    (tmp_path / "late.txt").write_bytes(b"a" * (1 << 17) + b"\xff")
    with pytest.warns(UserWarning, match=r"left out: 1 without UTF-8 text .*late\.txt"):
        assert find_texts(str(tmp_path / "*.txt")) == [tmp_path / "text.txt"]


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_a_pipe_is_told_to_be_read_only_once(refuses, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    err = refuses("train", "--data", tmp_path / "pipe", "--out", tmp_path / "run")
    assert "can be read only once: write the text to a file first" in err


def test_spelt_special_tokens_are_told(tmp_path):
    path, told = tmp_path / "stories.txt", []
    path.write_text("The dog.<|endoftext|>\n" * 60)
    start(str(path), tmp_path / "run", told.append, tokenizer="bpe", vocab_size=270)
    assert any("<|endoftext|> 60 times" in str(note) for note in told)


def test_the_reported_loss_is_the_mean_since_the_last(text, tmp_path, monkeypatch):
    trainer = start(text, tmp_path / "run", steps=7, log_every=3, eval_every=100)
    losses, step = [], loop.step
    monkeypatch.setattr(loop, "step", lambda *a: losses.append(step(*a)) or losses[-1])
    trainer.run()
    records = logged(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 3, 6, 7]
    parts = np.split([sums["loss"] for sums, _ in losses], [1, 3, 6])
    assert [record["loss"] for record in records] == pytest.approx([*map(np.mean, parts)])


def test_any_text_trains_generates_evaluates_and_tunes(works, train, tmp_path):
    """The README's lines in their order, on characters that the first text has not."""
    works(*train, tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("Ein ganz anderer Text: äöü 漢字 😀!\n" * 40, encoding="utf-8")
    run = tmp_path / "run"
    _, err = works("generate", "--model", run, "Où est ☃? ", "--max-new-tokens", 70)
    assert "longer than the model's context" in err
    works("eval", "--model", run, "--data", other)
    tuned = ("train", "--init-from", run, "--data", other, "--out", tmp_path / "tuned")
    works(*tuned, "--steps=1", "--sample-every=0", "--eval-batches=1")


def test_a_file_of_options_takes_every_flag(works, refuses, text, tmp_path):
    path = tmp_path / "options.toml"
    sizes = (
        "n-layer = 1\nn-head = 2\nn-embd = 8\nblock-size = 8\nsample-every = 0\neval_batches = 1"
    )
    path.write_text(f'out = "{tmp_path}/run"\ndata = "{text}"\nsteps = 2\nthreads = 1\n{sizes}')
    _, err = works("train", "--config", path)
    assert "warmup" not in err.replace("--warmup 100 is no less than --steps 2: cut to 0", "")
    assert "cut to 0" in err
    refuses("train", "--config", path)  # holds a run already
    path.write_text(path.read_text() + "\noverwrite = true")
    works("train", "--config", path)
    path.write_text(f'resume = "{tmp_path}/run"\nsteps = 3')
    assert "resumed at step 2" in works("train", "--config", path)[1]
    for option, message in (
        ("threads = true", "--threads True: expected a whole number"),
        ("threads = 0", "--threads 0: "),
        ("overwrit = true", "did you mean 'overwrite'?"),
    ):
        path.write_text(option)
        assert message in refuses("train", "--config", path, "--out", tmp_path / "b")
    path.write_text("out = 3")
    err = refuses("train", "--config", path)
    assert f"{path}: out=3: expected a text" in err.replace("--out 3", "out=3")
    numgpt.set_num_threads(2)


@pytest.mark.parametrize(("steps", "warmup", "cut"), [(40, 100, 4), (40, 40, 4), (40, 39, 39)])
def test_a_warmup_that_is_too_long_is_cut(text, tmp_path, steps, warmup, cut):
    told = []
    trainer = start(text, tmp_path / "run", told.append, steps=steps, warmup=warmup)
    message = f"warmup={warmup} is no less than steps={steps}: cut to {cut}"
    assert list(map(str, told)) == [message] * (cut < warmup)
    assert trainer.config.warmup == cut
    assert load_checkpoint(tmp_path / "run").config.warmup == cut


def test_a_changed_tokenizer_is_told_by_its_size(text, tmp_path):
    """… before anything runs over an id of many digits."""
    trainer = start(text, tmp_path / "run", tokenizer="bpe", vocab_size=300)
    trainer.lock.release()
    path = tmp_path / "run/tokenizer.json"
    whole = json.loads(path.read_text())
    for id, message in ((5_000_000, "its tokenizer is not the one"), (10**30, "has the id")):
        whole["added_tokens"] = [{"id": id, "content": "<x>", "special": True}]
        path.write_text(json.dumps(whole))
        began = time.perf_counter()
        with pytest.raises(ValueError, match=message):
            Trainer.resume(tmp_path / "run")
        assert time.perf_counter() - began < 20  # it took 41 s, or for ever


def test_a_context_that_is_too_long_allocates_nothing(refuses, text, tmp_path):
    given = ("train", "--data", text, "--out", tmp_path / "r", "--tokenizer=char", "--n-layer=1")
    given += ("--n-embd=128", "--n-head=1", "--block-size")
    assert "of up to --block-size 9999999 tokens, in a model of" in refuses(*given, 9999999)
    assert "both parts must be longer than --block-size 99999" in refuses(*given, 99999)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_weights_and_the_last_are_kept(works, refuses, text, tmp_path, keep):
    out, other_text = tmp_path / "run", tmp_path / "other.txt"
    other_text.write_text("ab" * 900 + "abba" * 50)  # the end of it is not what is learnt
    options = {"steps": 30, "eval_every": 5, "lr": 0.01, "warmup": 1}
    trainer = start(str(other_text), out, keep=keep, **options)
    trainer.run()
    losses = {r["step"]: r["val_loss"] for r in logged(out) if r["val_loss"] is not None}
    best = min(losses, key=lambda step: losses[step])
    assert best < 30  # or the test shows nothing
    assert (trainer.state.best_step, trainer.best_loss) == (best, losses[best])
    assert load_checkpoint(out).best_step == best
    other = {"best": "last", "last": "best"}[keep]
    assert trainer.places == {keep: out, other: out / other}
    batches = list(trainer.task.held_out())
    for name, step in (("best", best), ("last", 30)):
        model, tokenizer = formats.load(trainer.places[name])
        assert tokenizer.vocab_size == trainer.tokenizer.vocab_size
        count = sum(batch.counted for batch in batches)
        loss = sum(model.loss(b.ids, b.targets, 1 / count) for b in batches)
        assert loss == pytest.approx(losses[step], rel=1e-5)
    # A run in its place leaves nothing of it; one beside it is asked for.
    again = ("train", "--out", out, *TINY, "--tokenizer=char", "--steps=1", "--data", text)
    refuses(*again)
    (out / other / "notes.txt").write_text("mine")
    works(*again, "--overwrite", "--keep", keep)
    assert (out / other / "notes.txt").read_text() == "mine"


def test_the_other_weights_of_a_run_that_is_replaced_go(text, tmp_path):
    start(text, tmp_path / "run").run()
    assert (tmp_path / "run/last/model.safetensors").exists()
    start(text, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run/last").exists()


def test_a_file_where_other_weights_would_be_is_told_at_once(refuses, train, text, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last").write_text("mine")
    message = "is a file, where weights of the run would be: move it away"
    assert message in refuses(*train, tmp_path / "run")
    # … and one that comes later costs no step.
    trainer = start(text, tmp_path / "b", steps=4)
    (tmp_path / "b/last").write_text("mine")
    with pytest.raises(FileExistsError):
        trainer.run()
    assert load_checkpoint(tmp_path / "b").optimizer.steps == 4


@pytest.mark.parametrize("name", ["best", "last"])
def test_where_other_weights_would_be_there_may_be_something(refuses, train, text, tmp_path, name):
    model_directory(tmp_path / "run" / name)
    before = content(tmp_path)
    message = f"{tmp_path / 'run' / name} holds a model.safetensors already"
    assert message in refuses(*train, tmp_path / "run")
    assert content(tmp_path) == before
    start(text, tmp_path / "elsewhere").run()
    (tmp_path / "elsewhere").rename(tmp_path / "run2")
    (tmp_path / "run3").mkdir()
    (tmp_path / "run2").rename(tmp_path / "run3" / name)
    before = content(tmp_path)
    message = "is a run of its own, where weights of this one would be: choose another --out"
    assert message in refuses(*train, tmp_path / "run3", "--overwrite")
    assert content(tmp_path) == before


def test_a_start_reads_nothing_back(text, tmp_path, monkeypatch):
    """Base and tokenizer are loaded once, the tokens written once and not checked against
    themselves; what is handed over is what a resumed run has."""
    start(text, tmp_path / "base").run()
    functions = [(formats, "load"), (formats, "load_tokenizer"), (formats.loading, "read_model")]
    functions += [(pretraining, "encode_corpus"), (corpus, "sha256"), (loop, "load_checkpoint")]
    counts = counted(monkeypatch, *functions)
    trainer = start(text, tmp_path / "run", init_from=str(tmp_path / "base"), steps=4)
    assert counts == {"load": 1, "read_model": 1, "encode_corpus": 1}
    assert not is_mapped(trainer.model.parameters.flat)
    state = load_checkpoint(tmp_path / "run")
    np.testing.assert_array_equal(state.model.parameters.flat, trainer.model.parameters.flat)
    assert state.rng.bit_generator.state == trainer.state.rng.bit_generator.state
    assert dataclasses.asdict(state.config) == dataclasses.asdict(trainer.config)
    trainer.run()


def test_a_start_that_was_cut_short_leaves_no_other_weights(text, tmp_path, monkeypatch):
    """Killed after its files were there, before the weights of the run that it replaces were gone:
    going on deletes them.  What a killed save has left beside other weights goes as well."""
    out = tmp_path / "run"
    start(text, out, steps=2, keep="last").run()
    assert (out / "best/model.safetensors").exists()
    monkeypatch.setattr(starting, "remove_other_weights", lambda out: None)
    start(text, out, overwrite=True).lock.release()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (out / f"best/.x.{ended.pid}{TEMPORARY}").mkdir()
    Trainer.resume(out, {"steps": 1, "warmup": 0}).lock.release()
    assert not (out / "best").exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(4))
def test_an_error_of_a_callback_loses_nothing(text, tmp_path, error, at):
    whole, parts = (start(text, tmp_path / n, steps=3, warmup=1) for n in ("whole", "parts"))
    parts.notes.append(Note("read"))
    whole.run()
    heard = []

    def fails(record):
        heard.append(record)
        if len(heard) == at + 1:
            raise error

    with pytest.raises(error):
        parts.run(fails)
    assert not parts.lock.held
    parts.run(heard.append)
    assert sum(isinstance(record, Note) for record in heard) == 1 + (at == 0)
    one, _ = same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    assert one.optimizer.steps == 3


def test_a_run_that_is_stopped_where_it_saves_keeps_its_last_weights(text, tmp_path):
    trainer = start(text, tmp_path / "run", steps=9, save_every=2, eval_every=1)

    def stops(record):
        trainer.stop_requested |= isinstance(record, Saved)

    trainer.run(stops)
    assert trainer.optimizer.steps == 2
    last, _ = formats.load(tmp_path / "run/last")
    for name, array in trainer.model.parameters.items():
        np.testing.assert_array_equal(last.parameters[name], array)
