"""The rows of the table: what is timed, once for numgpt and once for the other side.

A side is a function that prepares the work and returns the function that does it once. Both sides
compute the same thing on weights of the same sizes and on the same ids, on the same threads, in
float32 unless the title says otherwise. Weights in fewer bits want the extra [onednn].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import (
    ctranslate2_gpt,
    generating,
    llama_cpp_llama,
    loading,
    preferring,
    starting,
    tokenizing,
    training,
    tuning,
)
from benchmarks.training import CHAR, GPT2

Side = Callable[[], Callable[[], Any]]


@dataclass
class Row:
    title: str
    numgpt: Side
    other: Side
    runs: int = 5
    repeats: int = 1  # in a run; its time is divided by them
    unit: str = "s"  # or "tokens/s", "MB/s"
    amount: float = 1.0  # of units in a run
    target: float | None = None  # of the ratio
    memory: bool = True  # False where the process holds more than the work, or doesn't do it itself


def step(
    title: str,
    config: dict[str, int],
    batch: int,
    time: int,
    other: str = "eager",
    target: float | None = None,
    dtype: str = "float32",
    **options: int,
) -> Row:
    """dtype is numgpt's."""
    own = {"jax": training.jax_step, "numgpt": training.numgpt_step}
    way = own.get(other) or partial(training.torch_step, how=other)
    how = "" if dtype == "float32" else f" in {dtype}"
    return Row(
        f"training step{how}, {title}, {batch} x {time} tokens ({training.OTHERS[other]})",
        partial(training.numgpt_step, config, batch, time, dtype),
        partial(way, config, batch, time),
        target=target,
        **options,
    )


def generation(
    title: str, sequences: int, tokens: int, other: Side, dtype: str = "float32", **options: Any
) -> Row:
    return Row(
        f"generation, 124M, {title}",
        partial(generating.numgpt_generate, sequences, tokens, dtype),
        other,
        unit="tokens/s",
        amount=sequences * tokens,
        **options,
    )


def greedy(
    title: str,
    other: Side,
    llama: bool = False,
    context: int = 8,
    sequences: int = 1,
    tokens: int = 128,
    dtype: str = "float32",
) -> Row:
    """The likeliest tokens after random prompts; of a single token the prompt is the work."""
    load = generating.numgpt_llama_model if llama else generating.numgpt_model
    return Row(
        title,
        partial(generating.numgpt_greedy, partial(load, dtype), context, sequences, tokens),
        other,
        runs=7,
        unit="tokens/s",
        amount=sequences * tokens if tokens > 1 else context,
    )


def decoding_gpt2(sequences: int, tokens: int, how: str) -> Row:
    return greedy(
        f"greedy decoding, 124M, {sequences} sequence{'s'[: sequences - 1]} (CTranslate2, {how})",
        partial(ctranslate2_gpt.decode, sequences, tokens, how),
        sequences=sequences,
        tokens=tokens,
        dtype=how,
    )


def fewer_bits(dtype: str, sequences: int, tokens: int, llama: bool = False) -> Row:
    load = generating.numgpt_llama_model if llama else generating.numgpt_model
    size = "Llama of SmolLM2's sizes, 135M" if llama else "124M"
    return greedy(
        f"greedy decoding in {dtype}, {size}, {sequences} sequence{'s'[: sequences - 1]} (numgpt in"
        " float32)",
        partial(generating.numgpt_greedy, load, 8, sequences, tokens),
        llama,
        sequences=sequences,
        tokens=tokens,
        dtype=dtype,
    )


def llama(kind: str, context: int = 8, tokens: int = 128) -> Row:
    work = "greedy decoding, 1 sequence" if tokens > 1 else f"prompt of {context} tokens"
    return greedy(
        f"{work}, Llama of SmolLM2's sizes, 135M (llama.cpp, {kind})",
        partial(llama_cpp_llama.decode, context, tokens, kind),
        llama=True,
        context=context,
        tokens=tokens,
        dtype={"F32": "float32", "BF16": "bfloat16", "Q8_0": "int8"}[kind],
    )


def tune(title: str, whole: bool) -> Row:
    return Row(
        f"supervised tuning, {title}, 135M, {len(tuning.LENGTHS)} examples (transformers, peft)",
        partial(tuning.numgpt_tune, whole),
        partial(tuning.peft_tune, whole),
        unit="tokens/s",
        amount=tuning.TOKENS,
        target=1.2,
    )


def joined(sequences: int) -> Row:
    return Row(
        f"a token more of {sequences} sequences, 124M (those that began together)",
        partial(generating.numgpt_step_of, sequences, joined=True),
        partial(generating.numgpt_step_of, sequences, joined=False),
        repeats=5,
        target=0.9,
    )


def encoding(title: str, other: Side, **options: Any) -> Row:
    return Row(
        f"encoding Shakespeare, cold ({title})",
        tokenizing.numgpt_encode_cold,
        other,
        runs=tokenizing.RUNS,
        unit="MB/s",
        amount=tokenizing.MEGABYTES,
        memory=False,
        **options,
    )


def preferring_row(title: str, ours: Side, theirs: Side, **options: Any) -> Row:
    return Row(f"{title}, 124M, whole model", ours, theirs, runs=5, target=1.3, **options)


ROWS = {
    "train-64": step("124M", GPT2, 4, 64, runs=7, target=3.0),
    "train-256": step("124M", GPT2, 4, 256, target=2.6),
    "train-1024": step("124M", GPT2, 1, 1024, target=2.3),
    "train-char": step("char recipe", CHAR, 12, 64, runs=15, repeats=20, target=1.5),
    "generate-1": generation(
        "1 sequence (transformers)",
        1,
        128,
        partial(generating.transformers_generate, 1, 128),
        target=2.0,
    ),
    "generate-1-products": generation(
        "1 sequence (its weights' products alone)",
        1,
        128,
        partial(generating.bare_products, 128),
        target=0.85,
    ),
    "generate-5": generation(
        "5 sequences (transformers)",
        5,
        64,
        partial(generating.transformers_generate, 5, 64),
        target=2.0,
    ),
    "prompt-1000": Row(
        "prompt of 1000 tokens, 124M (transformers)",
        generating.numgpt_prompt,
        generating.transformers_prompt,
        target=2.0,
    ),
    "generate-135M": Row(
        "generation, Llama of SmolLM2's sizes, 135M, 1 sequence (transformers)",
        partial(generating.numgpt_llama, 128),
        partial(generating.transformers_llama, 128),
        unit="tokens/s",
        amount=128,
        target=1.5,
    ),
    "step-8-joined": joined(8),
    "step-32-joined": joined(32),
    "tune-lora": tune("LoRA", whole=False),
    "tune-whole": tune("all weights", whole=True),
    "load": Row(
        "loading 124M from float32 safetensors (transformers)",
        loading.numgpt_load,
        loading.transformers_load,
        memory=False,
    ),
    "encode-tokenizers": encoding("tokenizers", tokenizing.tokenizers_encode, target=4.0),
    "encode-tiktoken": encoding("tiktoken", tokenizing.tiktoken_encode, target=0.4),
    "train-bpe-minbpe": Row(
        "training a BPE vocabulary of 4096 (minbpe's algorithm, estimated)",
        tokenizing.numgpt_train,
        tokenizing.minbpe_train,
        runs=1,
        memory=False,
        target=100,
    ),
    "train-bpe-tokenizers": Row(
        "training a BPE vocabulary of 4096 (tokenizers)",
        tokenizing.numgpt_train,
        tokenizing.tokenizers_train,
        memory=False,
    ),
    "import": Row(
        "import (NumPy's own)",
        partial(starting.import_module, "numgpt"),
        partial(starting.import_module, "numpy"),
        runs=15,
        memory=False,
    ),
    # Where PyTorch is stronger, and other ways to run it.
    "train-256-transformers": step("124M", GPT2, 4, 256, "transformers", runs=3),
    "train-64-fused": step("124M", GPT2, 4, 64, "fused"),
    "train-256-fused": step("124M", GPT2, 4, 256, "fused", runs=3),
    "train-256-compiled": step("124M", GPT2, 4, 256, "fused compiled", runs=3),
    "train-256-bf16": step("124M", GPT2, 4, 256, "numgpt", 1.3, "bfloat16"),
    "train-char-bf16": step(
        "char recipe", CHAR, 12, 64, "numgpt", dtype="bfloat16", runs=15, repeats=20
    ),
    "train-256-bf16-fused": step("124M", GPT2, 4, 256, "fused bf16", None, "bfloat16", runs=3),
    "train-256-bf16-compiled": step(
        "124M", GPT2, 4, 256, "fused compiled bf16", 1.0, "bfloat16", runs=3
    ),
    "train-char-fused": step("char recipe", CHAR, 12, 64, "fused", runs=15, repeats=20),
    "train-char-compiled": step("char recipe", CHAR, 12, 64, "fused compiled", runs=9, repeats=20),
    "generate-1-bf16": generation(
        "1 sequence (transformers, bfloat16)",
        1,
        128,
        partial(generating.transformers_generate, 1, 128, "bfloat16"),
        dtype="bfloat16",
        runs=3,
    ),
    "prompt-1000-bf16": Row(
        "prompt of 1000 tokens, 124M (transformers, bfloat16)",
        partial(generating.numgpt_prompt, "bfloat16"),
        partial(generating.transformers_prompt, "bfloat16"),
        runs=3,
    ),
    # Fewer bits beside float32, both numgpt's.
    "tune-dpo": preferring_row(
        f"DPO step, {preferring.PAIRS} pairs of 64 + 64 tokens (trl)",
        preferring.numgpt_dpo,
        preferring.trl_dpo,
    ),
    "tune-grpo": preferring_row(
        f"GRPO step, {preferring.COMPLETIONS} completions of {preferring.NEW_TOKENS} tokens (trl)",
        preferring.numgpt_grpo,
        preferring.trl_grpo,
    ),
    "rollouts": preferring_row(
        f"rollouts, {preferring.COMPLETIONS} completions of a prompt (transformers' generate)",
        preferring.numgpt_rollouts,
        preferring.transformers_rollouts,
        unit="tokens/s",
        amount=preferring.COMPLETIONS * preferring.NEW_TOKENS,
    ),
    "decode-1-bf16": fewer_bits("bfloat16", 1, 128),
    "decode-5-bf16": fewer_bits("bfloat16", 5, 64),
    "decode-1-int8": fewer_bits("int8", 1, 128),
    "decode-5-int8": fewer_bits("int8", 5, 64),
    "decode-135M-bf16": fewer_bits("bfloat16", 1, 128, llama=True),
    "decode-135M-int8": fewer_bits("int8", 1, 128, llama=True),
    "prompt-1000-bf16-own": Row(
        "prompt of 1000 tokens, 124M, in bfloat16 (numgpt in float32)",
        partial(generating.numgpt_prompt, "bfloat16"),
        generating.numgpt_prompt,
    ),
    # Other engines, in the same bits.
    "decode-1-ctranslate2": decoding_gpt2(1, 128, "float32"),
    "decode-1-ctranslate2-int8": decoding_gpt2(1, 128, "int8"),
    "decode-5-ctranslate2": decoding_gpt2(5, 64, "float32"),
    "decode-5-ctranslate2-int8": decoding_gpt2(5, 64, "int8"),
    "decode-135M-llama.cpp": llama("F32"),
    "decode-135M-llama.cpp-bf16": llama("BF16"),
    "decode-135M-llama.cpp-int8": llama("Q8_0"),
    "prompt-512-llama.cpp": llama("F32", 512, 1),
    "prompt-512-llama.cpp-int8": llama("Q8_0", 512, 1),
    "decode-135M-torch-int8": greedy(
        "greedy decoding, 1 sequence, Llama of SmolLM2's sizes, 135M (PyTorch, dynamic int8)",
        partial(generating.int8_llama, 128),
        llama=True,
    ),
    "train-64-jax": step("124M", GPT2, 4, 64, "jax", runs=9),
    "train-char-jax": step("char recipe", CHAR, 12, 64, "jax", runs=15, repeats=20),
    "product": Row(
        "one product, 1024 x 768 by 768 x 3072 (PyTorch)",
        starting.numgpt_product,
        starting.torch_product,
        runs=15,
        repeats=10,
        unit="GF/s",
        amount=2 * 1024 * 768 * 3072 / 1e9,
    ),
}
