"""Training on text: a new model or a given one, windows of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from numgpt import formats
from numgpt.data.batch import Batch
from numgpt.data.corpus import (
    Documents,
    TokensFile,
    check_length,
    encode_corpus,
    find_documents,
    open_corpus,
    read_documents,
)
from numgpt.formats.families import FAMILIES
from numgpt.options import OptionError, OptionFileError
from numgpt.tokenizer import BaseTokenizer, CharTokenizer, Tokenizer
from numgpt.training.checkpoint import RunState, check_disk, check_memory
from numgpt.training.config import TrainConfig
from numgpt.training.defaults import MOST_CONTEXT
from numgpt.training.records import Callback, Note
from numgpt.training.starting import check_not_replaced, replaced_files
from numgpt.training.tasks import NextTokens

SAMPLE_TOKENS = 200
SAMPLE_PROMPT = 8  # tokens of validation text before a sample


class Text(NextTokens):
    """Windows of a corpus."""

    statistics = False
    config: TrainConfig

    @classmethod
    def prepare(
        cls, config: TrainConfig, out: Path, staged: Path, report: Callback
    ) -> tuple[RunState, BaseTokenizer]:
        documents = find_documents(config.data)
        check_not_replaced(documents, replaced_files(out))
        config.make_absolute()
        if config.init_from is not None:
            model, tokenizer = formats.load(config.init_from, mmap=False)  # all of it trains
            if model.score_head is not None:
                raise OptionError.of(config, "{init_from} is a reward model: name a language model")
            if model.adapter is not None:
                model.merge_adapter()
                merged = type(model)(model.config, parameters=model.parameters)
                merged.generation_config = model.generation_config
                model = merged
            config.fit_context(model.config, MOST_CONTEXT)
            check_memory(config, model.config)
        else:
            check_memory(config, config.model_config(config.vocab_size, config.longest))
            if config.tokenizer == "bpe":
                report(Note(f"learning a vocabulary of {config.vocab_size} tokens from the text"))
            tokenizer = make_tokenizer(config, documents)
            model = None
        tokens = encode_corpus(documents, tokenizer, staged, config.special_tokens)
        check_length(tokens, config.val_fraction, config.longest)
        if model is None:
            sizes = config.model_config(tokenizer.vocab_size, config.longest)
            sizes.bos_token_id = sizes.eos_token_id = tokenizer.eos_token_id
            model = FAMILIES[config.arch].model(sizes, seed=config.seed)
        check_disk(out, model)
        # From here on all names of the run are its own: what it replaces later it has written.
        tokenizer.save_pretrained(staged)
        model.save_pretrained(staged)
        return RunState.new(config, model, tokens), tokenizer

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        super().__init__(state, out, tokenizer)
        config = self.config
        self.corpus = open_corpus(out, state.tokens, config.val_fraction, config.longest)

    @classmethod
    def encode_again(cls, config: TrainConfig, out: Path, tokenizer: BaseTokenizer) -> TokensFile:
        documents = find_documents(config.data)
        return encode_corpus(documents, tokenizer, out, config.special_tokens)

    def __str__(self) -> str:
        return (
            f"{len(self.corpus.train):,} tokens to train on, {len(self.corpus.val):,} to validate,"
            f" vocabulary {self.tokenizer.vocab_size}"
        )

    def next_step(self) -> list[Batch]:
        config = self.config
        return [
            self.corpus.batch(self.state.rng, config.batch_size, config.longest)
            for _ in range(config.grad_accum)
        ]

    def held_out(self) -> Iterable[Batch]:
        config = self.config
        return self.corpus.validation_batches(
            config.eval_batches, config.batch_size, config.longest
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


def make_tokenizer(config: TrainConfig, documents: Documents) -> BaseTokenizer:
    """The tokenizer that the options ask for, trained on the corpus or loaded."""
    changes: Counter[str] = Counter()  # of the text, which encode_corpus tells
    parts = (part for document in read_documents(documents, changes) for part in document)
    if config.tokenizer == "char":
        return CharTokenizer.train(parts)
    if config.tokenizer == "bpe":
        return Tokenizer.train(parts, config.vocab_size)
    try:
        return formats.load_tokenizer(config.tokenizer)
    except FileNotFoundError as error:
        raise OptionFileError(
            "{tokenizer}: choose bpe, char, or a directory that holds one ({0})",
            error,
            tokenizer=config.tokenizer,
        ) from None
