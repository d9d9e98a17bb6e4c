"""Damaged files, drawn by a seed: opening one works or is refused in one line.

The tests draw a few hundred. For more, from the checkout: python tests/campaigns/damage.py 5000
"""

import contextlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from numgpt import GPT, CharTokenizer, GPTConfig, Llama, LlamaConfig, Tokenizer, formats
from numgpt.training import TrainConfig, Trainer

TEXT = "The quick brown fox jumps over the lazy dog; the dog sleeps on.\n" * 20
SECONDS = 20  # until an opening counts as hanging
LONGEST_MESSAGE = 1200  # characters, the directory's name included
# What a JSON file can hold in place of what it should.
ODD: tuple[Any, ...] = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, -0.5, 1e308, float("inf"))
ODD += (float("nan"), "", "x", "x" * 5000, [], [1], [[]], {}, {"a": 1}, ["x"] * 3000, [2**64])
ODD += (json.loads("[" * 50 + "]" * 50), {"x" * 2000: "y" * 2000}, 10**400)


def write_samples(directory: Path) -> dict[str, Callable[[Path], object]]:
    """Small runs and models in a directory -> name of each, and what opens and uses it."""
    text = directory / "text.txt"
    text.write_text(TEXT)
    tiny = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 2}
    tiny |= {"steps": 2, "eval_batches": 1, "sample_every": 0, "data": str(text)}
    openers: dict[str, Callable[[Path], object]] = {}
    for name, options in {
        "run_char": {"tokenizer": "char"},
        "run_llama": {"arch": "llama", "vocab_size": 270},
    }.items():
        with contextlib.redirect_stderr(io.StringIO()):
            Trainer.start(TrainConfig(**tiny | options), directory / name).run()
        openers[name] = _resume
    bpe = Tokenizer.train([TEXT], 280)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 280}
    llama = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    llama |= {"intermediate_size": 16, "max_position_embeddings": 16, "vocab_size": 280}
    for name, model in {
        "gpt": GPT(GPTConfig(**sizes)),
        "llama": Llama(LlamaConfig(**llama, tie_word_embeddings=True)),
    }.items():
        model.save_pretrained(directory / name)
        bpe.save_pretrained(directory / name)
        (directory / name / "generation_config.json").write_text('{"eos_token_id": 3}')
        openers[name] = _generate
    (directory / "pair").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(directory / "gpt" / name, directory / "pair")
    CharTokenizer.train([TEXT]).save_pretrained(directory / "characters")
    openers |= {"pair": _tokenize, "characters": _tokenize}
    return openers


def _resume(directory: Path) -> None:
    trainer = Trainer.resume(directory)
    trainer.config.steps = trainer.optimizer.steps + 1
    with contextlib.redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
        trainer.run()


def _generate(directory: Path) -> None:
    model, tokenizer = formats.load(directory)
    with np.errstate(all="ignore"):
        model.generate(tokenizer.encode("The dog"), max_new_tokens=3, tokenizer=tokenizer)


def _tokenize(directory: Path) -> None:
    tokenizer = formats.load_tokenizer(directory)
    tokenizer.decode(tokenizer.encode("The"))


def damage(path: Path, rng: random.Random) -> str:
    """Change one file at random -> what was done."""
    data = path.read_bytes()
    ways = [_cut, _flip, _repeat, _empty]
    if path.suffix in (".json", ".jsonl"):
        ways += [_change_json] * 8
    if path.suffix == ".safetensors":
        ways += [_change_header] * 8
    way = rng.choice(ways)
    path.write_bytes(way(data, rng))
    return f"{way.__name__} {path.name}"


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def _repeat(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[max(0, place - 20) :]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 5, 50))):
        if changed:
            # The beginning decides most.
            last = rng.choice((len(changed), min(len(changed), 64)))
            changed[rng.randrange(last)] = rng.randrange(256)
    return bytes(changed)


def _change_json(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    place = rng.randrange(len(lines))
    with contextlib.suppress(ValueError):
        lines[place] = json.dumps(_with_odd(json.loads(lines[place]), rng)).encode()
    return b"\n".join(lines)


def _change_header(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inner = header.get("__metadata__", {}).get("training")
    if inner is not None and rng.random() < 0.8:  # a checkpoint's state is JSON in JSON
        header["__metadata__"]["training"] = json.dumps(_with_odd(json.loads(inner), rng))
    else:
        header = _with_odd(header, rng)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + length :]


def _with_odd(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts missing, or something odd in its place."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        changed = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(changed)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = _with_odd(changed[key], rng)
        return changed
    return rng.choice(ODD)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem_with(open_it: Callable[[Path], object], directory: Path) -> str | None:
    """What is wrong with how a damaged directory is opened; None where nothing is."""
    try:
        with within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_it(directory)
    except TimeoutError as error:
        return str(error)
    except (ValueError, OSError) as error:
        message = str(error)
        if "\n" in message or len(message) > LONGEST_MESSAGE:
            return f"{len(message)} characters: {message[:300]!r}"
        if str(directory) not in message:
            return f"names no file: {type(error).__name__}: {message[:300]}"
    except RuntimeError as error:  # TrainingError: weights that give no finite loss
        if type(error).__name__ != "TrainingError":
            return f"{type(error).__name__}: {str(error)[:300]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def campaign(count: int, seed: int = 0) -> list[str]:
    """Damage one file of a sample `count` times -> the problems that were met."""
    rng, problems = random.Random(seed), []
    with tempfile.TemporaryDirectory() as temporary:
        samples = Path(temporary, "samples")
        samples.mkdir()
        openers = write_samples(samples)
        for number in range(count):
            name = rng.choice(list(openers))
            work = Path(temporary, "work")
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(samples / name, work)
            files = (path for path in work.iterdir() if path.is_file() and path.suffix != ".png")
            victim = rng.choice(sorted(files))
            done = damage(victim, rng)
            if (problem := problem_with(openers[name], work)) is not None:
                problems.append(f"{number}: {name}, {done}: {problem}")
    return problems


if __name__ == "__main__":
    found = campaign(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(*found, sep="\n")
    print(f"{len(found)} problems")
    raise SystemExit(bool(found))
