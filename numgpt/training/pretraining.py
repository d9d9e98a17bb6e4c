"""Training on text: a new model or a given one, windows of a corpus."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from numgpt import formats
from numgpt.data.batch import Batch
from numgpt.data.corpus import (
    Documents,
    check_length,
    encode_corpus,
    find_documents,
    open_corpus,
    read_documents,
    restore_tokens,
)
from numgpt.data.finding import absolute
from numgpt.formats.families import FAMILIES
from numgpt.messages import shown
from numgpt.models import LanguageModel
from numgpt.models.config import Config
from numgpt.runtime import physical_memory
from numgpt.tokenizer import BaseTokenizer, CharTokenizer, Tokenizer
from numgpt.training.checkpoint import RunState, check_batch, check_fits
from numgpt.training.config import MOST_CONTEXT, TrainConfig
from numgpt.training.starting import absolute_model, check_not_replaced, replaced_files

SAMPLE_TOKENS = 200
SAMPLE_PROMPT = 8  # tokens of validation text before a sample
# What decides on the tokens, the sizes and the batches of a run; the rest may change when it is
# resumed.
FIXED = frozenset(("data", "val_fraction", "tokenizer", "vocab_size", "arch", "n_layer", "n_head"))
FIXED |= frozenset(("n_kv_head", "n_embd", "block_size", "init_from", "seed", "special_tokens"))
FIXED |= {"keep"}


def prepare(config: TrainConfig, out: Path, staged: Path) -> RunState:
    """Everything that a run begins with, its files in the directory `staged`."""
    documents = find_documents(config.data)
    check_not_replaced(documents, replaced_files(out))
    config.data = absolute(config.data)
    if config.init_from is not None:
        origin = config.init_from = absolute_model(config.init_from)
        model, tokenizer = formats.load(origin)
        if model.adapter is not None:
            model.merge_adapter()
            merged = type(model)(model.config, parameters=model.parameters)
            merged.generation_config = model.generation_config
            model = merged
        _fit_context(config, model)
    else:
        tokenizer = make_tokenizer(config, documents)
        model_config = new_config(config, tokenizer)
        model = None
    tokens = encode_corpus(documents, tokenizer, staged, config.special_tokens)
    check_length(tokens, config.val_fraction, config.context)
    if model is None:
        model = FAMILIES[config.arch].model(model_config, seed=config.seed)
    check_fits(out, config, model)
    # From here on all names of the run are its own: what it replaces later it has written.
    tokenizer.save_pretrained(staged)
    model.save_pretrained(staged)
    return RunState.new(config, model, tokens)


class TextBatches:
    """Windows of a corpus."""

    validates = True

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        assert isinstance(state.config, TrainConfig)
        self.config: TrainConfig = state.config
        self.state = state
        self.tokenizer = tokenizer
        restore_tokens(
            out,
            state.tokens,
            lambda: encode_corpus(
                find_documents(self.config.data), tokenizer, out, self.config.special_tokens
            ),
        )
        self.corpus = open_corpus(out, state.tokens, self.config.val_fraction, self.config.context)

    def __str__(self) -> str:
        return (
            f"{len(self.corpus.train):,} tokens to train on, {len(self.corpus.val):,} to validate,"
            f" vocabulary {self.tokenizer.vocab_size}"
        )

    def next_step(self) -> list[Batch]:
        config = self.config
        return [
            self.corpus.batch(self.state.rng, config.batch_size, config.context)
            for _ in range(config.grad_accum)
        ]

    def held_out(self) -> Iterable[Batch]:
        config = self.config
        return self.corpus.validation_batches(
            config.eval_batches, config.batch_size, config.context
        )

    def sample(self) -> tuple[str, str]:
        """Some validation text, and how the model goes on."""
        prompt = self.corpus.val[:SAMPLE_PROMPT].astype(np.int64)
        ids = self.state.model.generate(
            prompt,
            max_length=SAMPLE_TOKENS,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            eos_token_id=[],
            generation_config={},
            tokenizer=self.tokenizer,  # a model's vocabulary may be padded beyond it
            slide=True,
            seed=self.state.optimizer.steps,
        )[0]
        return self.tokenizer.decode(prompt), self.tokenizer.decode(ids[len(prompt) :])


def _fit_context(config: TrainConfig, model: LanguageModel) -> None:
    """Give block_size its value where the model decides it."""
    if config.block_size is None:
        config.block_size = min(MOST_CONTEXT, model.context_length)
    if config.block_size > model.context_length:
        raise ValueError(
            f"block_size={config.block_size} is more than the"
            f" {model.config.context_field}={model.context_length} of {config.init_from}: lower it"
        )


def new_config(config: TrainConfig, tokenizer: BaseTokenizer) -> Config:
    """That of a model of the family and sizes that the options give.  Raises ValueError where the
    model, or a batch, would not fit into memory."""
    vectors = 12 * config.n_layer * config.n_embd + tokenizer.vocab_size + config.context
    needed = 16 * vectors * config.n_embd  # bytes: float32 weights, gradients and two moments
    if needed > physical_memory():
        raise ValueError(
            f"a model of n_layer={config.n_layer}, n_embd={config.n_embd},"
            f" block_size={config.context} needs {needed / 1e9:,.0f} GB"
            f" to train, this machine has {physical_memory() / 1e9:,.0f} GB: choose a smaller one"
        )
    model_config = FAMILIES[config.arch].model.config_class.of_sizes(
        config.arch,
        tokenizer.vocab_size,
        config.context,
        config.n_layer,
        config.n_head,
        config.n_kv_head,
        config.n_embd,
    )
    check_batch(config, model_config)
    model_config.bos_token_id = model_config.eos_token_id = tokenizer.eos_token_id
    return model_config


def make_tokenizer(config: TrainConfig, documents: Documents) -> BaseTokenizer:
    """The tokenizer that the options ask for, trained on the corpus or loaded."""
    changes: Counter[str] = Counter()  # of the text, which encode_corpus tells
    parts = (part for document in read_documents(documents, changes) for part in document)
    if config.tokenizer == "char":
        return CharTokenizer.train(parts)
    if config.tokenizer == "bpe":
        return Tokenizer.train(parts, config.vocab_size, progress=sys.stderr.isatty())
    try:
        return formats.load_tokenizer(config.tokenizer)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"tokenizer={shown(config.tokenizer)}: choose bpe, char, or a directory that holds one"
            f" ({error})"
        ) from None
