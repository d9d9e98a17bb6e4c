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


def test_generate_streams_one_text(call, run):
    arguments = ("generate", "To be", "--model", run, "--seed=1", "--max-length=12")
    status, out, err = call(*arguments)
    assert status == 0
    assert out.startswith("To be")
    assert len(out) == 12 + 1
    assert "7 tokens in" in err
    assert "tokens/s" in err
    assert "seed 1" in err
    assert call(*arguments)[1] == out


def test_generate_separates_several_texts(call, run):
    flags = ("--max-new-tokens=5", "-n=5", "--seed=2")
    status, out, err = call("generate", "To", "--model", run, *flags)
    assert status == 0
    assert [f"=== {number} of 5 ===\nTo" in out for number in range(1, 6)] == [True] * 5
    assert "25 tokens in" in err


def test_generate_greedily_stops_and_bans(call, run):
    common = ("generate", "To be, or", "--model", run, "--greedy", "--max-length=16")
    status, out, err = call(*common)
    assert status == 0
    model, tokenizer = numgpt.load(run)
    expected = model.generate(tokenizer.encode("To be, or"), max_length=16)[0]
    assert out == tokenizer.decode(expected) + "\n"
    assert "seed" not in err
    banned = out[9]
    assert banned not in call(*common, "--ban", banned)[1][9:]
    assert call(*common, "--stop", out[11])[1] == out[: out.index(out[11], 9) + 1] + "\n"


def test_the_prompt_can_come_from_a_pipe(call, run):
    common = ("--model", run, "--greedy", "--max-length", 12)
    expected = call("generate", "To be", *common)[1]
    assert call("generate", "-", *common, stdin=b"To be")[1] == expected
    assert call("generate", *common, stdin=b"To be")[1] == expected


def test_a_full_context_slides_unless_told_otherwise(call, run):
    arguments = ("generate", "To", "--model", run, "--max-new-tokens", 99)
    status, out, err = call(*arguments)
    assert status == 0
    assert len(out) == 2 + 99 + 1
    assert err.count("longer than the model's context of 16 tokens") == 1
    status, out, err = call(*arguments, "--no-slide")
    assert status == 0
    assert len(out) == 16 + 1
    assert "note: the text ends here" in err
    several = call(*arguments, "-n", 2)
    assert several[0] == 0
    assert len(several[1].split("===")[2]) > 99
    long = call("generate", "To be, or not to be, that is", "--model", run)
    assert long[0] == 0
    assert long[1].startswith("To be, or not to be, that is")


def test_eval_prints_three_measures(call, run):
    status, out, _ = call("eval", "--model", run, "--data", run.with_name("text.txt"))
    assert status == 0
    loss, perplexity, bits = (float(re.search(r"[\d.]+", line)[0]) for line in out.splitlines())
    assert perplexity == pytest.approx(2.718281828**loss, rel=1e-3)
    assert bits == pytest.approx(loss * 1.442695, rel=1e-3)  # one byte a character


def test_tokenizer_trains_encodes_and_decodes(call, run, tmp_path):
    train = ("tokenizer", "train", run.with_name("text.txt"))
    status, _, err = call(*train, "--vocab-size=270", "--out", tmp_path / "t")
    assert status == 0
    assert "270 tokens" in err
    tokenizer = ("--tokenizer", tmp_path / "t")
    status, out, err = call("tokenizer", "encode", "not to be", *tokenizer)
    assert status == 0
    assert f"{len(out.split())} tokens" in err
    decoded = subprocess.run(
        [sys.executable, "-m", "numgpt", "tokenizer", "decode", *map(str, tokenizer)],
        input=out.encode(),
        capture_output=True,
        check=True,
    )
    assert decoded.stdout == b"not to be"
    special = call("tokenizer", "encode", "<|endoftext|>", "--special", *tokenizer)
    assert special[1] == "269\n"
    few = call(*train, "--vocab-size=9999", "--out", tmp_path / "u")
    assert "fewer than 9999" in few[2]


def test_info_counts_the_parts(call, run):
    status, out, _ = call("info", run)
    assert status == 0
    parts = ("token embedding", "attention", "feed-forward", "norms", "KV cache", "BLAS", "threads")
    for part in parts:
        assert part in out
    config = json.loads((run / "config.json").read_text())
    assert f"n_embd{' ' * 26}{config['n_embd']}" in out


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 16), ("int8", 8)])
def test_fewer_bits_from_the_command_line(call, dtype, bits):
    status, out, _ = call("info", "shakespeare", "--dtype", dtype)
    assert status == 0
    assert f"memory, {dtype}" in out
    told = re.search(r"weights +([0-9.]+) MB  \(([0-9.]+) bits each\)", out)
    assert bits <= float(told[2]) < bits + 2  # with positions and vectors in float32
    assert re.search(rf"fewer bits +.*{dtype} by (oneDNN|NumPy, in panels)", out)
    generate = ("generate", "To be", "--greedy", "--max-new-tokens=5")
    assert call(*generate, "--dtype", dtype)[1] == call(*generate)[1]


def test_train_reads_a_file_and_flags_win(call, run, tmp_path):
    config = tmp_path / "c.toml"
    text = run.with_name("text.txt")
    config.write_text(f'data = "{text}"\nsteps = 50\nn_layer = 1\nn_embd = 16\n')
    flags = ("--steps=2", "--block-size=8")
    status, _, err = call("train", "--config", config, "--out", tmp_path / "run", *flags)
    assert status == 0, err
    assert "step 2/2" in err
    assert "numgpt generate --model" in err
    again = call("train", "--out", tmp_path / "run")
    assert again[0] == 2
    assert "--resume" in again[2]
    finished = call("train", "--resume", tmp_path / "run")
    assert finished[0] == 0
    assert "has done its 2 steps" in finished[2]
    assert "raise --steps" in finished[2]
    more = call("train", "--resume", tmp_path / "run", "--steps", 3)
    assert more[0] == 0
    assert "resumed at step 2" in more[2]


def test_train_without_data_uses_the_language_reference(call, tmp_path):
    flags = ("--steps=1", "--n-layer=1", "--n-embd=8", "--n-head=1", "--eval-batches=1")
    status, _, err = call("train", "--out", tmp_path / "run", *flags)
    assert status == 0, err
    assert "tokens to train on" in err
    assert (tmp_path / "run/tokens.bin").stat().st_size > 300_000


def test_a_prompt_of_several_words_needs_no_quotes(call, run):
    common = ("--model", run, "--greedy", "--max-length", 12)
    assert call("generate", "To", "be", *common)[1] == call("generate", "To be", *common)[1]


def test_input_that_is_not_text_is_refused(call, run):
    status, _, err = call("generate", "--model", run, stdin=b"\xff\xfe")
    assert status == 2
    assert "not UTF-8" in err


@pytest.mark.parametrize(
    "command",
    [
        *([], ["nonsense"], ["x" * 100_000], ["tokenizer"]),
        *(["generate", "--nonsense"], ["generate", "--top-k", "x\ny"]),
    ],
)
def test_bad_usage_is_status_2(call, command):
    status, _, err = call(*command)
    assert status == 2
    assert err.startswith("numgpt")
    assert ": error: " in err
    assert "--help)\n" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [["generate"], ["chat"], ["train"], ["tune"], ["eval"], ["tokenizer"], ["convert"], ["info"]]
    + [["tokenizer", action] for action in ("train", "encode", "decode")]
    + [["tune", "sft"]],
)
def test_help_shows_an_example(call, command):
    status, out, _ = call(*command, "--help")
    assert status == 0
    assert f"example:\n  numgpt {' '.join(command)}" in out


def test_a_reader_that_leaves_early_is_no_error(run):
    encode = f'"{sys.executable}" -m numgpt tokenizer encode - --tokenizer "{run}"'
    command = f"{encode} | head -c 5"
    result = subprocess.run(command, shell=True, input=TEXT * 200, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Error" not in result.stderr


def test_sequences_that_stop_early_show_no_padding(call, run):
    arguments = ("generate", "To be", "--model", run, "-n", 4, "--stop", "o")
    _, out, _ = call(*arguments, "--seed", 3, "--max-length", 16)
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


def test_log_probabilities_of_what_is_generated(call):
    flags = ("--logprobs", "--top-logprobs", 3, "-n", 2, "--seed", 1, "--max-new-tokens", 4)
    status, out, _ = call("generate", "--model", "shakespeare", "To be", *flags)
    assert status == 0
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


def test_beams_on_the_command_line(call):
    model, tokenizer = numgpt.load("shakespeare")
    flags = ("--num-beams", 3, "--max-new-tokens", 6, "--no-repeat-ngram-size", 2)
    status, out, err = call("generate", "--model", "shakespeare", "To be", *flags)
    assert status == 0
    assert "seed" not in err
    ids = tokenizer.encode("To be")
    options = {"num_beams": 3, "max_new_tokens": 6, "no_repeat_ngram_size": 2}
    expected = model.generate(ids, tokenizer=tokenizer, **options)[0]
    assert out == tokenizer.decode(expected) + "\n"
    status, out, _ = call("generate", "--model", "shakespeare", "To be", *flags, "-n", 3)
    assert out.count("===") == 6


def test_an_unknown_flag_points_to_its_commands_help(call):
    status, _, err = call("tune", "sft", "--no-such-flag")
    assert status == 2
    assert err == (
        "numgpt tune sft: error: unrecognized arguments: --no-such-flag (numgpt tune sft --help)\n"
    )


def test_json_that_is_measured_as_text_is_said(call, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "To be, or not to be"}\n' * 3)
    status, out, err = call("eval", "--data", tmp_path / "a.jsonl")
    assert status == 0
    assert "perplexity" in out
    assert "a.jsonl is JSON: measured as the text it is, keys and all" in err


def test_a_page_from_the_command_line(call, tmp_path):
    out = tmp_path / "page.html"
    given = ("explain", "My lord, the", "--target", " kings", "--layers", ":2", "--out", out)
    status, text, err = call(*given)
    assert (status, text) == (0, f"{out}\n")
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
