"""Generation with GPT-2's sizes and SmolLM2's, against transformers and the products alone."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.training import GPT2

END = 0  # the end-of-text token, which never comes before all tokens are made
# SmolLM2-135M's sizes.
SMOLLM2 = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}


def prompt(length: int, sequences: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(SMOLLM2["vocab_size"], size=(sequences, length))


def numgpt_model(dtype: str = "float32") -> Any:
    import numgpt

    return kept_as(dtype, numgpt.GPT(numgpt.GPTConfig(**GPT2)))


def numgpt_llama_model(dtype: str = "float32") -> Any:
    import numgpt

    return kept_as(dtype, numgpt.Llama(numgpt.LlamaConfig(**SMOLLM2)))


def kept_as(dtype: str, model: Any) -> Any:
    if dtype == "float32":
        return model
    from numgpt.runtime.fewer_bits import KINDS

    if KINDS[dtype].multiplier() is None:
        raise ImportError(f"{dtype} by oneDNN: pip install onednn-cpu-gomp")
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return type(model).from_pretrained(directory, dtype=dtype)


def transformers_model(dtype: str = "float32") -> Any:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    return model.to(getattr(torch, dtype))


def numgpt_generate(sequences: int, tokens: int, dtype: str = "float32") -> Callable[[], Any]:
    return numgpt_sampling(numgpt_model(dtype), sequences, tokens)


def numgpt_llama(tokens: int) -> Callable[[], Any]:
    return numgpt_sampling(numgpt_llama_model(), 1, tokens)


def numgpt_sampling(model: Any, sequences: int, tokens: int) -> Callable[[], Any]:
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "seed": 0}
    options |= {"top_k": 50, "eos_token_id": END, "num_return_sequences": sequences}
    return lambda: model.generate(prompt(8), **options)


def numgpt_greedy(
    load: Callable[[], Any], context: int, sequences: int, tokens: int
) -> Callable[[], Any]:
    model, ids = load(), prompt(context, sequences)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": END}
    return lambda: model.generate(ids, **options)[:, context:]


def numgpt_step_of(sequences: int, joined: bool) -> Callable[[], Any]:
    """A pass over sequences that decode together; `joined` ones are of unequal length, as if they
    had come one after another, the longest as long as all the others are."""
    from numgpt.generation import Batcher, GenerationOptions

    batcher = Batcher(numgpt_model(), sequences)
    options = GenerationOptions(max_new_tokens=500, do_sample=True, seed=0, eos_token_id=[])
    for number in range(sequences):
        length = 120 - 3 * number % 60 if joined else 120
        batcher.add(prompt(length)[0], options, np.random.default_rng(number))
    return batcher.step


def transformers_generate(sequences: int, tokens: int, dtype: str = "float32") -> Callable[[], Any]:
    return transformers_sampling(transformers_model(dtype), sequences, tokens)


def transformers_llama(tokens: int) -> Callable[[], Any]:
    return transformers_sampling(transformers_llama_model(), 1, tokens)


def int8_llama(tokens: int) -> Callable[[], Any]:
    """PyTorch's dynamic quantisation: int8 weights, activations rounded as they come."""
    import torch

    model = transformers_llama_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao is to take its place
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    return transformers_sampling(model, 1, tokens, do_sample=False)


def transformers_llama_model() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(**SMOLLM2, eos_token_id=END)
    return transformers.LlamaForCausalLM(config).eval()


def transformers_sampling(
    model: Any, sequences: int, tokens: int, do_sample: bool = True
) -> Callable[[], Any]:
    import torch

    ids = torch.tensor(prompt(8))
    options = {"top_k": 50} if do_sample else {}

    def generate() -> Any:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=do_sample,
            **options,
            num_return_sequences=sequences,
            pad_token_id=END,
        )

    return generate


def bare_products(tokens: int) -> Callable[[], None]:
    """The vector products that so many tokens take, and nothing else: the machine's own speed."""
    model = numgpt_model()
    weights = [array for name, array in model.parameters.items() if array.ndim == 2]
    weights = [array for array in weights if array.shape != (GPT2["n_positions"], GPT2["n_embd"])]
    head = model.unembedding.weight
    products = [array.T if array is head else array for array in weights]
    rows = {len(matrix): np.ones((1, len(matrix)), np.float32) for matrix in products}
    results = {matrix.shape[1]: np.empty((1, matrix.shape[1]), np.float32) for matrix in products}

    def run() -> None:
        for _ in range(tokens):
            for matrix in products:
                np.matmul(rows[len(matrix)], matrix, out=results[matrix.shape[1]])

    return run


def numgpt_prompt(dtype: str = "float32") -> Callable[[], Any]:
    model = numgpt_model(dtype)
    return lambda: model.generate(prompt(1000), max_new_tokens=1)


def transformers_prompt(dtype: str = "float32") -> Callable[[], Any]:
    import torch

    model, ids = transformers_model(dtype), torch.tensor(prompt(1000))

    def last_logits() -> Any:
        with torch.inference_mode():
            return model(ids, use_cache=True, logits_to_keep=1).logits

    return last_logits
