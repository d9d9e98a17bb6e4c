"""What a new run begins with: a tokenizer, and a model with random weights."""

from __future__ import annotations

import sys

from numgpt import formats
from numgpt.models import GPT, GPTConfig, LanguageModel, Llama, LlamaConfig
from numgpt.runtime import physical_memory
from numgpt.tokenizer import BaseTokenizer, CharTokenizer, Tokenizer
from numgpt.training.config import TrainConfig
from numgpt.training.corpus import read_documents

INNER_MULTIPLE = 32  # a Llama's feed-forward width is rounded up to one


def new_model(config: TrainConfig, tokenizer: BaseTokenizer) -> LanguageModel:
    """A model of the family and sizes that the options give, with random weights."""
    vectors = 12 * config.n_layer * config.n_embd + tokenizer.vocab_size + config.block_size
    needed = 16 * vectors * config.n_embd  # bytes: float32 weights, gradients and two moments
    if needed > physical_memory():
        raise ValueError(
            f"a model of n_layer={config.n_layer}, n_embd={config.n_embd} needs"
            f" {needed / 1e9:,.0f} GB"
            f" to train, this machine has {physical_memory() / 1e9:,.0f} GB: choose a smaller one"
        )
    end_of_text = tokenizer.eos_token_id
    common = {"vocab_size": tokenizer.vocab_size, "eos_token_id": end_of_text}
    common["bos_token_id"] = end_of_text
    if config.arch == "gpt2":
        gpt_config = GPTConfig(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.block_size,
            **common,
        )
        return GPT(gpt_config, seed=config.seed)
    llama_config = LlamaConfig(
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head or config.n_head,
        hidden_size=config.n_embd,
        # Three matrices of 8/3 C have the parameters of GPT-2's two of 4 C.
        intermediate_size=-(-8 * config.n_embd // 3 // INNER_MULTIPLE) * INNER_MULTIPLE,
        max_position_embeddings=config.block_size,
        tie_word_embeddings=True,
        **common,
    )
    return Llama(llama_config, seed=config.seed)


def make_tokenizer(config: TrainConfig) -> BaseTokenizer:
    """The tokenizer that the options ask for, learnt from the corpus or loaded."""
    if config.tokenizer == "char":
        return CharTokenizer.train(
            part for document in read_documents(config.data) for part in document
        )
    if config.tokenizer == "bpe":
        parts = (part for document in read_documents(config.data) for part in document)
        return Tokenizer.train(parts, config.vocab_size, progress=sys.stderr.isatty())
    try:
        return formats.load_tokenizer(config.tokenizer)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"tokenizer={config.tokenizer!r}: choose char, bpe, or a directory that holds one"
            f" ({error})"
        ) from None
