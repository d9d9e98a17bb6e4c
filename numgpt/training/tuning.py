"""Supervised tuning: examples of what to answer, learnt by an adapter or by the whole model.

The loss is the mean of -log P(y | x) over the tokens of the answers y, given their prompts x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from numgpt import formats
from numgpt.data.batch import Batch
from numgpt.data.corpus import TOKENS_FILE, TokensFile, absolute
from numgpt.data.example_set import Counts, ExampleSet, encode_examples
from numgpt.data.examples import Example, marked
from numgpt.data.records import STANDARD_INPUT, Record, find_record_files, read_records
from numgpt.messages import tell
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES
from numgpt.tokenizer.chat_template import ChatTemplate
from numgpt.training.beginning import absolute_model, check_not_replaced, run_files
from numgpt.training.checkpoint import RunState, check_fits
from numgpt.training.config import MOST_LENGTH, TuneConfig

SAMPLE_TOKENS = 80
FIXED = frozenset(("model", "data", "val_data", "val_fraction", "max_length", "chat_format"))
FIXED |= frozenset(("lora_r", "lora_alpha", "lora_targets", "use_rslora", "batch_size", "seed"))


def prepare(config: TuneConfig, out: Path, staged: Path) -> RunState:
    """Everything that a run begins with, its files in the directory `staged`."""
    files = [*find_record_files(config.data), *find_record_files(config.val_data or [])]
    check_not_replaced([n for n in files if n != STANDARD_INPUT], out, run_files(out))
    config.data = _from_anywhere(config.data)
    config.val_data = None if config.val_data is None else _from_anywhere(config.val_data)
    config.model = absolute_model(config.model)
    model, tokenizer = formats.load(config.model)
    if config.chat_format is not None:
        tokenizer.chat_template = CHAT_TEMPLATES[config.chat_format]
    if model.adapter is not None:
        raise ValueError(
            f"model={config.model!r} is an adapter: merge it first (numgpt convert), or go on with"
            " --resume"
        )
    longest = min(model.context_length, MOST_LENGTH)
    config.max_length = longest if config.max_length is None else config.max_length
    if config.max_length > model.context_length:
        raise ValueError(
            f"max_length={config.max_length} is more than the model's"
            f" {model.config.context_field}={model.context_length}: lower it"
        )
    if config.lora_r:
        try:
            model.add_adapter(config.lora(), seed=config.seed)
        except ValueError as error:  # in PEFT's names for the options
            name, sign, rest = re.split("([=:])", str(error), maxsplit=1)
            ours = {"r": "lora_r", "target_modules": "lora_targets"}.get(name, name)
            raise ValueError(f"{ours}{sign}{rest}") from None
    check_fits(out, config, model)
    tokenizer.save_pretrained(staged)
    tokens, counts = _encode(config, tokenizer, staged)
    tell(str(counts))
    examples = ExampleSet(staged, tokens)
    if (config.val_fraction or config.val_data) and not len(examples.val):
        raise ValueError("no example is held out: raise val_fraction, or bring more examples")
    config.set_schedule(examples.batches_in_epoch(config.batch_size), len(examples.val) > 0)
    state = RunState.new(config, model, tokens)
    if model.adapter is None:
        model.save_pretrained(staged)
    else:
        model.save_adapter(staged)
    return state


def _from_anywhere(data: str | list[str]) -> str | list[str]:
    """The same data from whatever working directory a run is resumed."""
    return data if data == STANDARD_INPUT else absolute(data) or data


def _encode(
    config: TuneConfig, tokenizer: BaseTokenizer, directory: Path
) -> tuple[TokensFile, Counts]:
    """Write the examples into directory/tokens.bin."""
    shown = _Shown(config.show, tokenizer)
    return encode_examples(_records(config), tokenizer, config.longest, directory, shown)


def _records(config: TuneConfig) -> Iterator[tuple[Record, bool]]:
    """All records, each with whether it is held out."""
    rng = np.random.default_rng([config.seed, 1])
    for record in read_records(find_record_files(config.data)):
        yield record, bool(config.val_fraction and rng.random() < config.val_fraction)
    if config.val_data is not None:
        for record in read_records(find_record_files(config.val_data)):
            yield record, True


class _Shown:
    """Prints the first examples, with what is learnt of them marked."""

    def __init__(self, count: int, tokenizer: BaseTokenizer):
        self.left = count
        self.tokenizer = tokenizer

    def __call__(self, example: Example) -> None:
        if self.left:
            self.left -= 1
            tell(
                f"--- learnt is what stands between « and » ---\n{marked(example, self.tokenizer)}"
            )


class ExampleBatches:
    """Batches of examples of nearly equal length."""

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        assert isinstance(state.config, TuneConfig)
        self.config: TuneConfig = state.config
        self.state = state
        self.tokenizer = tokenizer
        if not (out / TOKENS_FILE).exists():
            if self.config.data == STANDARD_INPUT:
                raise ValueError(
                    f"{out / TOKENS_FILE} is missing, and the data came by standard input: put the"
                    " file back"
                )
            _encode(self.config, tokenizer, out)
        self.examples = ExampleSet(out, state.tokens)
        self.validates = len(self.examples.val) > 0

    def __str__(self) -> str:
        tokens = f", {len(self.examples.val):,} held out" if self.validates else ""
        return f"{len(self.examples.train):,} examples to train on{tokens}"

    def next_step(self) -> list[Batch]:
        config, drawn = self.config, self.state.batches
        return [
            self.examples.batch(number, config.batch_size, config.seed)
            for number in range(drawn, drawn + config.grad_accum)
        ]

    def held_out(self) -> Iterable[Batch]:
        return self.examples.validation_batches(self.config.batch_size)

    def sample(self) -> tuple[str, str]:
        """A prompt, held out if any is, and the model's answer: another one each time."""
        numbers = self.examples.val if self.validates else self.examples.train
        every = max(1, self.config.sample_every)
        turn = self.state.optimizer.steps // every
        example = self.examples.example(int(numbers[turn % len(numbers)]))
        prompt = example.ids[: max(1, int(np.argmax(example.learnt)))]
        room = self.state.model.context_length - len(prompt)
        ends = set(ChatTemplate(self.tokenizer).end_ids())
        ids = self.state.model.generate(
            prompt,
            max_new_tokens=max(1, min(SAMPLE_TOKENS, room)),
            eos_token_id=sorted(ends),
            tokenizer=self.tokenizer,
            slide=True,
        )[0]
        answer = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        return self.tokenizer.decode(prompt, skip_special_tokens=True)[-200:], answer
