"""Command lines that cannot be, each with what is said of it: one line, exit status 2, nothing
begun, and options in the names of their flags."""

import os
import shlex

import pytest
from support import write_lines

from numgpt.training import TrainConfig, Trainer

TEXT = "To be, or not to be, that is the question.\n" * 80
SIZES = "--n-layer 1 --n-head 2 --n-embd 8 --eval-batches 1 --tokenizer char"
TRAIN = f"train --out NEW --data TEXT {SIZES}"
TUNE = "tune sft --model shakespeare --data LINES --out NEW"
BEAMS = "generate T --model RUN --num-beams 3"
DIGITS = "1" * 5000
CASES = {
    # Names and files.
    "generate x --model ./absent": "./absent",
    "generate x --model ''": 'the model is ""',
    "generate T --model TEXT": "no model that numgpt can read",
    "eval --model RUN --data absent.txt": "--data 'absent.txt': no such file",
    f"eval --data {'x' * 3000}": "choose a shorter name",
    "info ./absent": "./absent",
    "tokenizer encode x --tokenizer ./absent": "./absent",
    "tokenizer train absent.txt --vocab-size 300 --out NEW": "absent.txt",
    f"tokenizer train {os.devnull} --vocab-size 300 --out NEW": "is empty",
    "train --out TEXT --data TEXT": "is a file",
    f"train --out {'x' * 3000} --data TEXT": "choose a shorter name",
    f"{TRAIN} --tokenizer ./words": "--tokenizer './words': choose bpe, char",
    "train --out NEW --data absent": "--data 'absent': no such file",
    "train --resume NEW": "nothing to resume",
    f"{TRAIN} --config absent.toml": "absent.toml",
    f"{TRAIN} --config TEXT": "not valid TOML",
    f"{TRAIN} --config DEEP": "not valid TOML",
    f"{TUNE} --val-data nope": "--val-data 'nope': no such file",
    # Texts and ids.
    "generate ☃ --model RUN": "U+2603",
    "generate '' --model RUN": "empty",
    "generate 'To be, or not to be, that' --model RUN --no-slide": "n_positions=16",
    "tokenizer decode 12x --tokenizer RUN": "12x",
    "tokenizer decode 9999 --tokenizer RUN": "9999",
    f"tokenizer decode {'1' * 23}": f"one sequence of ids below 1024, not [{'1' * 23}]",
    f"tokenizer decode {DIGITS}": "is not a token id",
    # How tokens are chosen.
    "generate T --model RUN --temperature 0": "--temperature 0.0: expected a number above 0; for"
    " the most likely token every time, turn sampling off (--greedy)",
    f"generate x --temperature {'hot' * 500}": "--temperature",
    "generate T --model RUN --top-p 2": "--top-p 2.0: expected a number above 0, up to 1",
    "generate T --model RUN --top-k -1": "--top-k -1: expected a whole number from 0 up",
    "generate T --model RUN --seed -1": "--seed -1: expected",
    f"generate x --seed {DIGITS}": "--seed",
    "generate T --model RUN --threads 0": "--threads 0: expected a whole number from 1 to 4096",
    "generate T --model RUN --greedy -n 3": "--greedy writes the same",
    "generate T --model RUN --stop ''": "--stop ['']: give texts in UTF-8 that are not empty",
    "generate T --model RUN --ban a --ban ''": "--ban ['a', '']: give texts in UTF-8",
    "generate T --model RUN --min-new-tokens 9 --max-new-tokens 3": "--min-new-tokens 9 is more",
    "generate T --model RUN --top-logprobs 3": "--top-logprobs 3 goes with --logprobs",
    "generate T --model RUN --logprobs --top-logprobs -1": "--top-logprobs -1: expected 0",
    "generate T --model RUN --greedy --num-beams 0": "--num-beams 0: expected a whole number",
    f"{BEAMS} -n 4": "--num-return-sequences 4 is more than --num-beams 3",
    f"{BEAMS} --logprobs": "--logprobs cannot be combined with --num-beams",
    f"{BEAMS} --temperature 0.5": "--temperature 0.5 cannot be combined with --num-beams",
    f"{BEAMS} --seed 3": "--seed 3 cannot be combined with --num-beams",
    "generate T --model RUN --length-penalty 2": "--length-penalty 2.0 goes with --num-beams",
    "eval --model RUN --data TEXT --context 99": "--context 99: expected 1 to the model's",
    "explain 'My lord, the' --out NEW --token 99": "--token 99: the text has tokens 0 to 3",
    # A tokenizer, a run, its sizes.
    "tokenizer train TEXT --vocab-size 10 --out NEW": "--vocab-size 10 is too small",
    "train": "give --out DIR for a new run",
    "train --out NEW --resume RUN": "--out NEW and --resume",
    f"{TRAIN} --vocab-size 300": "--vocab-size 300 needs --tokenizer 'bpe'",
    f"{TRAIN} --n-embd 999999996": "GB to train",
    f"{TRAIN} --batch-size 9000000000000000": "--batch-size 9000000000000000 of up to"
    " --block-size 64 tokens, in a model of",
    f"{TRAIN} --block-size 2000": "a smaller --vocab-size or --tokenizer 'char'",
    f"{TRAIN} --n-head 3": "--n-embd 8 is not a multiple of --n-head 3",
    f"{TRAIN} --arch llama --n-embd 16 --n-head 4 --n-kv-head 3": "--n-head 4 is not a multiple of"
    " --n-kv-head 3",
    **{
        f"train --init-from RUN --out NEW {flag}": f"{flag} cannot be combined with --init-from"
        for flag in ("--n-layer 7", "--tokenizer 'bpe'", "--vocab-size 300")
    },
    # Tuning.
    "tune sft --data LINES --out NEW": "give --model",
    f"{TUNE} --lora-targets=": "--lora-targets '': expected the names of projections",
    f"{TUNE} --lora-targets=q_proj": "'q_proj' is none of the model's projections: c_attn, c_fc",
    f"{TUNE} --epochs 1e308": "--epochs 1e+308: expected a number above 0 and below 1,000,000",
    f"{TUNE} --epochs 0": "--epochs 0.0: expected a number above 0",
    f"{TUNE} --epochs 2 --steps 3": "--epochs 2.0 cannot be combined with --steps 3: choose one",
    f"{TUNE} --val-fraction 0.9999": "all 12 are held out, lower --val-fraction",
    f"{TUNE} --val-fraction 1": "--val-fraction 1.0: expected 0 or more and below 1",
    f"{TUNE} --lora-r -1": "--lora-r -1: expected a whole number from 0 up",
    f"{TUNE} --lora-r 100000": "--lora-r 100000 is larger than",
    f"{TUNE} --lora-r 100000000": "--lora-r 100000000: expected a whole number from 1 to 500,000",
    f"{TUNE} --lora-r 0 --dtype int8": "--dtype 'int8' is not trained, and --lora-r 0",
    f"{TUNE} --dtype float16": "--dtype 'float16': expected float32 or bfloat16 or int8",
    "generate x --dtype int4": "argument --dtype: invalid choice: 'int4'",
    f"{TUNE} --lora-r 0 --use-rslora": "--use-rslora cannot be combined with --lora-r 0",
    f"{TUNE} --lora-r 0 --lora-alpha 2": "--lora-alpha 2.0 cannot be combined with --lora-r 0",
    f"{TUNE} --lora-alpha 1e300": "--lora-alpha 1e+300: expected a number above 0 and below",
    f"{TUNE} --lora-dropout 1": "--lora-dropout 1.0: expected",
    f"{TUNE} --grad-accum 1000000001": "--grad-accum 1000000001: expected a whole number from 1",
    f"{TUNE} --max-length 100000": "--max-length 100000 is more than the model's n_positions",
    f"{TUNE} --max-length 3": "all 12 are too long for --max-length 3, even without their prompts",
    f"{TUNE} --chat-format x": "--chat-format 'x': expected chatml or llama3 or plain",
    f"{TUNE} --lr 0": "--lr 0.0: expected a number above 0",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands for what in the cases."""
    directory = tmp_path_factory.mktemp("bad")
    names = {"TEXT": "text.txt", "LINES": "lines.jsonl", "DEEP": "deep.toml", "RUN": "run"}
    places = {name: directory / path for name, path in names.items()}
    places["TEXT"].write_text(TEXT)
    places["DEEP"].write_text("a = " + "[" * 100_000)
    lines = [
        {"prompt": f"What is {n}?", "completion": f" It is {n}, of course."} for n in range(12)
    ]
    write_lines(places["LINES"], *lines)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "tokenizer": "char"}
    config = TrainConfig(data=str(places["TEXT"]), steps=1, warmup=0, sample_every=0, **sizes)
    Trainer.start(config, places["RUN"]).run()
    return places


@pytest.mark.parametrize("line", CASES, ids=lambda line: line if len(line) < 120 else line[:40])
def test_bad_input_is_one_line(call, places, tmp_path, line):
    there = places | {"NEW": tmp_path / "new"}
    status, out, err = call(*(there.get(word, word) for word in shlex.split(line)))
    *notes, last = err.strip().splitlines()
    assert (status, out) == (2, "")
    assert all(note.startswith("numgpt: note: ") for note in notes[:-1])
    assert CASES[line].replace("NEW", str(tmp_path / "new")) in last
    assert len(last) < 500
    assert not (tmp_path / "new").exists()
