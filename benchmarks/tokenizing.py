"""Tokenizers on the Shakespeare text: encoding with GPT-2's vocabulary, and learning one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import minbpe
from benchmarks.process import Estimate

SHARED = Path(__file__).parents[2] / "shared"
TEXT = SHARED / "data" / "tinyshakespeare.txt"
MEGABYTES = 1.115394
VOCABULARY = 4096
RUNS = 7  # of a row that needs something fresh for each


def shared(path: Path) -> Path:
    """A file that is not in the checkout.  Ends the benchmark in one line where it is missing."""
    if not path.exists():
        raise SystemExit(
            f"this row needs {path}: bring"
            + (
                " the Tiny Shakespeare corpus (1,115,394 bytes, weights/README.md has its SHA-256)"
                if path == TEXT
                else " GPT-2's encoder.json and vocab.bpe"
            )
        )
    return path


def shakespeare() -> str:
    return shared(TEXT).read_text(encoding="utf-8")


def each_with_a_fresh(load: Callable[[], Any], use: Callable[[Any], Any]) -> Callable[[], Any]:
    """use(load()), with the loading done beforehand: a used tokenizer has filled its caches."""
    fresh = [load() for _ in range(RUNS + 1)]  # one to warm up
    return lambda: use(fresh.pop())


def numgpt_encode_cold() -> Callable[[], Any]:
    from numgpt.tokenizer import load_tokenizer

    text = shakespeare()
    return each_with_a_fresh(
        lambda: load_tokenizer(shared(SHARED / "gpt2")), lambda t: t.encode(text)
    )


def tiktoken_encode() -> Callable[[], Any]:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    from numgpt.tokenizer.pattern import GPT2_PATTERN

    files = tuple(str(shared(SHARED / "gpt2" / name)) for name in ("vocab.bpe", "encoder.json"))
    ranks = data_gym_to_mergeable_bpe_ranks(*files)
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    text = shakespeare()
    return lambda: encoding.encode_ordinary(text)


def tokenizers_encode() -> Callable[[], Any]:
    import tokenizers

    from numgpt.tokenizer import load_tokenizer

    text = shakespeare()
    with tempfile.TemporaryDirectory() as directory:
        load_tokenizer(shared(SHARED / "gpt2")).save_pretrained(directory)
        path = f"{directory}/tokenizer.json"
        return each_with_a_fresh(
            lambda: tokenizers.Tokenizer.from_file(path), lambda t: t.encode(text)
        )


def numgpt_train() -> Callable[[], Any]:
    import numgpt

    text = shakespeare()
    return lambda: numgpt.Tokenizer.train(text, VOCABULARY, special_tokens=())


def tokenizers_train() -> Callable[[], Any]:
    import tokenizers

    text = shakespeare()

    def train() -> None:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator([text], trainer)

    return train


def minbpe_train() -> Callable[[], Estimate]:
    text = shakespeare()
    return lambda: minbpe.estimate(text, VOCABULARY)
