"""How a run begins: tokenizer, model and tokens, put into its directory all at once.

From then on it is a run that can be resumed, at any instant; before, nothing is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from numgpt import formats
from numgpt.data.corpus import (
    TOKENS_FILE,
    Documents,
    absolute,
    check_length,
    encode_corpus,
    find_documents,
    read_documents,
)
from numgpt.files import finish_replacing, replacing_together
from numgpt.formats.families import FAMILIES
from numgpt.formats.huggingface import WEIGHTS_FILE, model_files
from numgpt.messages import quoted, shown
from numgpt.models import LanguageModel
from numgpt.runtime import physical_memory
from numgpt.tokenizer import BaseTokenizer, CharTokenizer, Tokenizer
from numgpt.tokenizer.base import tokenizer_files
from numgpt.training.checkpoint import CHECKPOINT_FILE, RunState, check_fits, save_checkpoint
from numgpt.training.config import MOST_CONTEXT, TrainConfig
from numgpt.training.log import CURVE_FILE, DAMAGED_LOG_FILE, LOG_FILE

RUN_FILES = (CHECKPOINT_FILE, TOKENS_FILE, LOG_FILE, DAMAGED_LOG_FILE, CURVE_FILE)


def begin_run(config: TrainConfig, out: Path, overwrite: bool = False) -> None:
    """Write a new run into the directory `out`: tokenizer, tokens, model, a checkpoint of step 0.

    With `overwrite` it takes the place of the run or model that is there, in the same moment.
    Raises ValueError or OSError for what is known to fail later, and for a directory that holds
    something already; then everything is as it was.
    """

    def check_free() -> None:
        if not overwrite:
            _check_free(out)

    finish_replacing(out)
    check_free()
    config.data = absolute(config.data)
    with replacing_together(out, run_files(out), check_free) as staged:
        documents = find_documents(config.data)
        check_not_replaced(documents, out, run_files(out))
        if config.init_from is not None:
            origin = config.init_from = absolute_model(config.init_from)
            model, tokenizer = formats.load(origin)
            _fit_context(config, model)
        else:
            tokenizer = make_tokenizer(config, documents)
            model = new_model(config, tokenizer)
        check_fits(out, config, model)
        tokenizer.save_pretrained(staged)
        # From here on all names of the run are its own: what it replaces later it has written.
        model.save_pretrained(staged)
        tokens = encode_corpus(documents, tokenizer, staged)
        check_length(tokens, config.val_fraction, config.context)
        save_checkpoint(staged, RunState.new(config, model, tokens))


def _check_free(out: Path) -> None:
    """Raises ValueError where a directory holds a run, a model or a tokenizer."""
    if there := run_files(out):
        resume = f"continue the run with --resume {quoted(out)}, "
        way_out = resume if CHECKPOINT_FILE in there else ""
        telling = [name for name in (CHECKPOINT_FILE, WEIGHTS_FILE) if name in there]
        raise ValueError(
            f"{out} holds a {(telling or there)[0]} already: {way_out}choose another --out, or"
            " replace the run, model or tokenizer that is there with --overwrite"
        )


def check_not_replaced(documents: Documents, out: Path, names: list[str]) -> None:
    """Raises ValueError for a text that is one of the files that would be replaced."""
    for path in documents or ():
        if any((out / name).exists() and os.path.samefile(path, out / name) for name in names):
            raise ValueError(
                f"{path} is a file that would be replaced: name another --out, or move the text"
            )


def absolute_model(name: str) -> str:
    """The same model from whatever working directory a run is resumed."""
    return os.path.abspath(name) if os.path.exists(name) else name


def run_files(directory: Path) -> list[str]:
    """The names of the files in a directory that a run would replace."""
    written = [name for name in RUN_FILES if os.path.lexists(directory / name)]
    return [*written, *model_files(directory), *tokenizer_files(directory)]


def _fit_context(config: TrainConfig, model: LanguageModel) -> None:
    """Give block_size its value where the model decides it."""
    if config.block_size is None:
        config.block_size = min(MOST_CONTEXT, model.context_length)
    if config.block_size > model.context_length:
        raise ValueError(
            f"block_size={config.block_size} is more than the"
            f" {model.config.context_field}={model.context_length} of {config.init_from}: lower it"
        )


def new_model(config: TrainConfig, tokenizer: BaseTokenizer) -> LanguageModel:
    """A model of the family and sizes that the options give, with random weights."""
    vectors = 12 * config.n_layer * config.n_embd + tokenizer.vocab_size + config.context
    needed = 16 * vectors * config.n_embd  # bytes: float32 weights, gradients and two moments
    if needed > physical_memory():
        raise ValueError(
            f"a model of n_layer={config.n_layer}, n_embd={config.n_embd} needs"
            f" {needed / 1e9:,.0f} GB"
            f" to train, this machine has {physical_memory() / 1e9:,.0f} GB: choose a smaller one"
        )
    end_of_text = tokenizer.eos_token_id
    family = FAMILIES[config.arch]
    model_config = family.model.config_class.of_sizes(
        config.arch,
        tokenizer.vocab_size,
        config.context,
        config.n_layer,
        config.n_head,
        config.n_kv_head,
        config.n_embd,
    )
    model_config.bos_token_id = model_config.eos_token_id = end_of_text
    return family.model(model_config, seed=config.seed)


def make_tokenizer(config: TrainConfig, documents: Documents) -> BaseTokenizer:
    """The tokenizer that the options ask for, learnt from the corpus or loaded."""
    parts = (part for document in read_documents(documents) for part in document)
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
