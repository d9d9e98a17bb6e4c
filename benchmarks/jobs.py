"""The work that is timed, once for numgpt and once for the others; each function returns what one
run does.

Both sides compute the same thing on the same random weights' sizes and the same ids, in float32, on
the same threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
CHAR = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65}
NEW_TOKENS = 64
SHARED = Path(__file__).parents[2] / "shared"


@dataclass
class Row:
    """One row of the table."""

    title: str
    numgpt: Callable[[], Callable[[], Any]]
    other: Callable[[], Callable[[], Any]]
    runs: int = 7
    repeats: int = 1  # in a run; its time is divided by them
    unit: str = "s"  # or "tokens/s", "MB/s"
    amount: float = 1.0  # of units in a run


def ids_and_targets(config: dict[str, int], batch: int, time: int) -> np.ndarray:
    return np.random.default_rng(0).integers(config["vocab_size"], size=(2, batch, time))


# --- training steps: forward, backward, clipping, AdamW ---


def numgpt_step(config: dict[str, int], batch: int, time: int) -> Callable[[], None]:
    import numgpt

    model = numgpt.GPT(numgpt.GPTConfig(**config))
    optimizer = numgpt.AdamW(model, lr=1e-4)
    ids, targets = ids_and_targets(config, batch, time)

    def step() -> None:
        model.loss_and_grads(ids, targets)
        optimizer.step(grad_clip=1.0)

    return step


def torch_step(config: dict[str, int], batch: int, time: int) -> Callable[[], None]:
    import torch

    from benchmarks.torch_gpt import TorchGPT, adamw

    model = TorchGPT(**config)
    optimizer = adamw(model, lr=1e-4)
    ids, targets = torch.tensor(ids_and_targets(config, batch, time))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


# --- generation, against transformers ---


def prompt(length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(GPT2["vocab_size"], size=(1, length))


def numgpt_generate(sequences: int) -> Callable[[], Any]:
    import numgpt

    model = numgpt.GPT(numgpt.GPTConfig(**GPT2))
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "top_k": 50, "seed": 0}
    return lambda: model.generate(prompt(8), num_return_sequences=sequences, **options)


def transformers_model() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()


def transformers_generate(sequences: int) -> Callable[[], Any]:
    import torch

    model, ids = transformers_model(), torch.tensor(prompt(8))

    def generate() -> Any:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=50,
            num_return_sequences=sequences,
            pad_token_id=50256,
        )

    return generate


def numgpt_prompt() -> Callable[[], Any]:
    import numgpt

    model = numgpt.GPT(numgpt.GPTConfig(**GPT2))
    return lambda: model.generate(prompt(1000), max_new_tokens=1)


def transformers_prompt() -> Callable[[], Any]:
    import torch

    model, ids = transformers_model(), torch.tensor(prompt(1000))

    def last_logits() -> Any:
        with torch.inference_mode():
            return model(ids, use_cache=True, logits_to_keep=1).logits

    return last_logits


# --- tokenizers, on the Shakespeare text with GPT-2's vocabulary ---


def shakespeare() -> str:
    return (SHARED / "data" / "tinyshakespeare.txt").read_text(encoding="utf-8")


def numgpt_encode_cold() -> Callable[[], Any]:
    from numgpt.tokenizer import load_tokenizer

    tokenizer, text = load_tokenizer(SHARED / "gpt2"), shakespeare()

    def encode() -> list[int]:
        tokenizer._pieces.clear()  # as in a new process
        return tokenizer.encode(text)

    return encode


def tiktoken_encode() -> Callable[[], Any]:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    from numgpt.tokenizer.pattern import GPT2_PATTERN

    files = (str(SHARED / "gpt2" / "vocab.bpe"), str(SHARED / "gpt2" / "encoder.json"))
    ranks = data_gym_to_mergeable_bpe_ranks(*files)
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    text = shakespeare()
    return lambda: encoding.encode_ordinary(text)


def tokenizers_encode() -> Callable[[], Any]:
    import tempfile

    import tokenizers

    from numgpt.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        load_tokenizer(SHARED / "gpt2").save_pretrained(directory)
        path = f"{directory}/tokenizer.json"
        text = shakespeare()

        def load() -> Any:
            return tokenizers.Tokenizer.from_file(path)

        fresh = [load() for _ in range(12)]  # its cache fills, so each run takes a new one
    return lambda: fresh.pop().encode(text)


def _steps(
    title: str, config: dict[str, int], batch: int, time: int, runs: int, repeats: int = 1
) -> Row:
    return Row(
        f"training step, {title}, {batch} x {time} tokens",
        lambda: numgpt_step(config, batch, time),
        lambda: torch_step(config, batch, time),
        runs,
        repeats,
    )


MEGABYTES = 1.115394

ROWS = {
    "train-char": _steps("char recipe", CHAR, 12, 64, 11, repeats=20),
    "train-64": _steps("124M", GPT2, 4, 64, 7),
    "train-256": _steps("124M", GPT2, 4, 256, 5),
    "generate-1": Row(
        "generation, 124M, 1 sequence (transformers)",
        lambda: numgpt_generate(1),
        lambda: transformers_generate(1),
        runs=5,
        unit="tokens/s",
        amount=NEW_TOKENS,
    ),
    "generate-5": Row(
        "generation, 124M, 5 sequences (transformers)",
        lambda: numgpt_generate(5),
        lambda: transformers_generate(5),
        runs=5,
        unit="tokens/s",
        amount=5 * NEW_TOKENS,
    ),
    "prompt-1000": Row(
        "prompt of 1000 tokens, 124M (transformers)", numgpt_prompt, transformers_prompt, 5
    ),
    "encode-tiktoken": Row(
        "encoding Shakespeare, cold (tiktoken)",
        numgpt_encode_cold,
        tiktoken_encode,
        unit="MB/s",
        amount=MEGABYTES,
    ),
    "encode-tokenizers": Row(
        "encoding Shakespeare, cold (tokenizers)",
        numgpt_encode_cold,
        tokenizers_encode,
        unit="MB/s",
        amount=MEGABYTES,
    ),
}
