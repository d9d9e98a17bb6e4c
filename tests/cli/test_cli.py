"""The command line as a person meets it: output, errors, exit status, pipes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import numgpt
from numgpt.training import TrainConfig, Trainer

TEXT = "To be, or not to be, that is the question.\n" * 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model trained for a moment, beside its text."""
    text = tmp_path_factory.mktemp("cli") / "text.txt"
    text.write_text(TEXT)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "tokenizer": "char"}
    config = TrainConfig(data=str(text), steps=60, sample_every=0, **sizes)
    Trainer.start(config, text.with_name("run")).run()
    return text.with_name("run")


def test_generate_streams_one_text(works, run):
    arguments = ("generate", "To be", "--model", run, "--seed=1", "--max-length=12")
    out, err = works(*arguments)
    assert out.startswith("To be")
    assert len(out) == 12 + 1
    assert "7 tokens in" in err
    assert "tokens/s" in err
    assert "seed 1" in err
    assert works(*arguments)[0] == out


def test_generate_separates_several_texts(works, run):
    flags = ("--max-new-tokens=5", "-n=5", "--seed=2")
    out, err = works("generate", "To", "--model", run, *flags)
    assert [f"=== {number} of 5 ===\nTo" in out for number in range(1, 6)] == [True] * 5
    assert "25 tokens in" in err


def test_generate_greedily_stops_and_bans(works, run):
    common = ("generate", "To be, or", "--model", run, "--greedy", "--max-length=16")
    out, err = works(*common)
    model, tokenizer = numgpt.load(run)
    expected = model.generate(tokenizer.encode("To be, or"), max_length=16)[0]
    assert out == tokenizer.decode(expected) + "\n"
    assert "seed" not in err
    banned = out[9]
    assert banned not in works(*common, "--ban", banned)[0][9:]
    assert works(*common, "--stop", out[11])[0] == out[: out.index(out[11], 9) + 1] + "\n"


def test_a_prompt_can_come_from_a_pipe_and_needs_no_quotes(works, run):
    common = ("--model", run, "--greedy", "--max-length", 12)
    expected, _ = works("generate", "To be", *common)
    assert works("generate", "-", *common, stdin=b"To be")[0] == expected
    assert works("generate", *common, stdin=b"To be")[0] == expected
    assert works("generate", "To", "be", *common)[0] == expected


def test_a_full_context_slides_unless_told_otherwise(works, run):
    arguments = ("generate", "To", "--model", run, "--max-new-tokens", 99)
    out, err = works(*arguments)
    assert len(out) == 2 + 99 + 1
    assert err.count("longer than the model's context of 16 tokens") == 1
    out, err = works(*arguments, "--no-slide")
    assert len(out) == 16 + 1
    assert "note: the text ends here" in err
    several, _ = works(*arguments, "-n", 2)
    assert len(several.split("===")[2]) > 99
    long, _ = works("generate", "To be, or not to be, that is", "--model", run)
    assert long.startswith("To be, or not to be, that is")


def test_eval_prints_three_measures(works, run):
    out, _ = works("eval", "--model", run, "--data", run.with_name("text.txt"))
    loss, perplexity, bits = (float(re.search(r"[\d.]+", line)[0]) for line in out.splitlines())
    assert perplexity == pytest.approx(2.718281828**loss, rel=1e-3)
    assert bits == pytest.approx(loss * 1.442695, rel=1e-3)  # one byte a character


def test_tokenizer_trains_encodes_and_decodes(works, run, tmp_path):
    train = ("tokenizer", "train", run.with_name("text.txt"))
    assert "270 tokens" in works(*train, "--vocab-size=270", "--out", tmp_path / "t")[1]
    tokenizer = ("--tokenizer", tmp_path / "t")
    out, err = works("tokenizer", "encode", "not to be", *tokenizer)
    assert f"{len(out.split())} tokens" in err
    assert works("tokenizer", "decode", *tokenizer, stdin=out.encode())[0] == "not to be"
    special, _ = works("tokenizer", "encode", "<|endoftext|>", "--special", *tokenizer)
    assert special == "269\n"
    assert "fewer than 9999" in works(*train, "--vocab-size=9999", "--out", tmp_path / "u")[1]


def test_info_counts_the_parts(works, run):
    out, _ = works("info", run)
    parts = ("token embedding", "attention", "feed-forward", "norms", "KV cache", "BLAS", "threads")
    for part in parts:
        assert part in out
    config = json.loads((run / "config.json").read_text())
    assert f"n_embd{' ' * 26}{config['n_embd']}" in out


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 16), ("int8", 8)])
def test_fewer_bits_from_the_command_line(works, dtype, bits):
    out, _ = works("info", "shakespeare", "--dtype", dtype)
    assert f"memory, {dtype}" in out
    told = re.search(r"weights +([0-9.]+) MB  \(([0-9.]+) bits each\)", out)
    assert bits <= float(told[2]) < bits + 2  # with positions and vectors in float32
    assert re.search(rf"fewer bits +.*{dtype} by (oneDNN|NumPy, in panels)", out)
    generate = ("generate", "To be", "--greedy", "--max-new-tokens=5")
    assert works(*generate, "--dtype", dtype)[0] == works(*generate)[0]


def test_train_reads_a_file_and_flags_win(works, refuses, run, tmp_path):
    config = tmp_path / "c.toml"
    text = run.with_name("text.txt")
    config.write_text(f'data = "{text}"\nsteps = 50\nn_layer = 1\nn_embd = 16\n')
    flags = ("--steps=2", "--block-size=8")
    _, err = works("train", "--config", config, "--out", tmp_path / "run", *flags)
    assert "step 2/2" in err
    assert "numgpt generate --model" in err
    assert "--resume" in refuses("train", "--out", tmp_path / "run")
    _, finished = works("train", "--resume", tmp_path / "run")
    assert "has done its 2 steps" in finished
    assert "raise --steps" in finished
    assert "resumed at step 2" in works("train", "--resume", tmp_path / "run", "--steps", 3)[1]


def test_train_without_data_uses_the_language_reference(works, tmp_path):
    flags = ("--steps=1", "--n-layer=1", "--n-embd=8", "--n-head=1", "--eval-batches=1")
    assert "tokens to train on" in works("train", "--out", tmp_path / "run", *flags)[1]
    assert (tmp_path / "run/tokens.bin").stat().st_size > 300_000


def test_input_that_is_not_text_is_refused(refuses, run):
    assert "not UTF-8" in refuses("generate", "--model", run, stdin=b"\xff\xfe")


BAD_USAGE = [[], ["nonsense"], ["x" * 100_000], ["tokenizer"], ["generate", "--nonsense"]]
BAD_USAGE += [["generate", "--top-k", "x\ny"]]


@pytest.mark.parametrize("command", BAD_USAGE)
def test_bad_usage_is_status_2(refuses, command):
    err = refuses(*command)
    assert err.startswith("numgpt")
    assert ": error: " in err
    assert "--help)\n" in err


COMMANDS = ["generate", "chat", "train", "tune", "tune sft", "eval", "convert", "info"]
COMMANDS += ["tokenizer", "tokenizer train", "tokenizer encode", "tokenizer decode"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(works, command):
    assert f"example:\n  numgpt {command}" in works(*command.split(), "--help")[0]


def test_a_reader_that_leaves_early_is_no_error(run):
    encode = f'"{sys.executable}" -m numgpt tokenizer encode - --tokenizer "{run}"'
    command = f"{encode} | head -c 5"
    result = subprocess.run(command, shell=True, input=TEXT * 200, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Error" not in result.stderr


def test_sequences_that_stop_early_show_no_padding(works, run):
    flags = ("-n", 4, "--stop", "o", "--seed", 3, "--max-length", 16)
    out, _ = works("generate", "To be", "--model", run, *flags)
    texts = out.split("===")[2::2]
    assert len(texts) == 4
    for text in texts:
        assert text.startswith("\nTo be")
        body = text.removeprefix("\nTo be").removesuffix("\n\n")
        assert "o" not in body[:-1]
        assert body.endswith("o") or len(body) == 11


def test_a_terminal_without_the_character_shows_a_question_mark(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("ab→" * 200, encoding="utf-8")
    train = [sys.executable, "-m", "numgpt", "train", "--data", text, "--out", tmp_path / "run"]
    flags = ["--n-layer=1", "--n-embd=8", "--n-head=1", "--block-size=8", "--steps=2"]
    result = subprocess.run(
        [*train, *flags], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert b"?" in result.stdout


def test_training_goes_on_when_nobody_reads(tmp_path):
    flags = "--n-layer=1 --n-embd=8 --n-head=1 --steps=12 --sample-every=2 --eval-batches=1"
    command = f'"{sys.executable}" -m numgpt train --out "{tmp_path}/run" {flags} | head -n 1'
    subprocess.run(command, shell=True, capture_output=True)
    assert (tmp_path / "run/checkpoint.safetensors").exists()


def test_log_probabilities_of_what_is_generated(works):
    flags = ("--logprobs", "--top-logprobs", 3, "-n", 2, "--seed", 1, "--max-new-tokens", 4)
    out, _ = works("generate", "--model", "shakespeare", "To be", *flags)
    model, tokenizer = numgpt.load("shakespeare")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 2
    for line in lines:
        ids = [token["id"] for token in line["tokens"]]
        assert line["text"] == tokenizer.decode(ids)
        (score,) = model.score(tokenizer.encode("To be"), [ids])
        logps = [token["logprob"] for token in line["tokens"]]
        np.testing.assert_allclose(logps, score.token_logprobs, atol=2e-5)
        for token in line["tokens"]:
            of_top = [other["logprob"] for other in token["top"]]
            assert len(of_top) == 3
            assert of_top == sorted(of_top, reverse=True)
            assert token["logprob"] <= of_top[0]


def test_beams_on_the_command_line(works):
    model, tokenizer = numgpt.load("shakespeare")
    flags = ("--num-beams", 3, "--max-new-tokens", 6, "--no-repeat-ngram-size", 2)
    out, err = works("generate", "--model", "shakespeare", "To be", *flags)
    assert "seed" not in err
    ids = tokenizer.encode("To be")
    options = {"num_beams": 3, "max_new_tokens": 6, "no_repeat_ngram_size": 2}
    expected = model.generate(ids, tokenizer=tokenizer, **options)[0]
    assert out == tokenizer.decode(expected) + "\n"
    out, _ = works("generate", "--model", "shakespeare", "To be", *flags, "-n", 3)
    assert out.count("===") == 6


def test_an_unknown_flag_points_to_its_commands_help(refuses):
    assert refuses("tune", "sft", "--no-such-flag") == (
        "numgpt tune sft: error: unrecognized arguments: --no-such-flag (numgpt tune sft --help)\n"
    )


def test_json_that_is_measured_as_text_is_said(works, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "To be, or not to be"}\n' * 3)
    out, err = works("eval", "--data", tmp_path / "a.jsonl")
    assert "perplexity" in out
    assert "a.jsonl is JSON: measured as the text it is, keys and all" in err


def test_a_page_from_the_command_line(call, works, tmp_path):
    out = tmp_path / "page.html"
    given = ("explain", "My lord, the", "--target", " kings", "--layers", ":2", "--out", out)
    text, err = works(*given)
    assert text == f"{out}\n"
    assert err.splitlines() == [
        "numgpt: note: The target ' kings' is 2 tokens, ' king' + 's': the first is taken.",
        "numgpt: note: Layers 0 to 1 are kept, of 6: steps and attention of the others are not in"
        " the page.",
    ]
    assert out.read_text().startswith("<!doctype html>")
    before = out.read_bytes()
    for flags, message in (
        (("--token", 99), "--token 99: the text has tokens 0 to 3"),
        (("--layers", "x"), "expected A:B, as in 0:4 for the first four layers, got 'x'"),
        (("--out", tmp_path), f"{tmp_path}: Is a directory: name a file"),
        (("--out", tmp_path / "no/page.html"), "there is no directory"),
    ):
        status, _, err = call("explain", "My lord, the", "--out", out, *flags)
        assert status in (1, 2)
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("version", "wrong"),
    [("2.1.3", False), ("2.2.0", True), ("2.3.4", True), ("2.3.5", False), ("2.10.0", False)],
)
def test_info_warns_of_a_numpy_that_multiplies_wrongly(call, monkeypatch, version, wrong):
    monkeypatch.setattr(np, "__version__", version)
    assert ("can multiply wrongly from several threads" in call("info")[1]) == wrong
