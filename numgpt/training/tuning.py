"""Tuning, of an adapter or of the whole model: how such a run begins, and supervised tuning, on
examples of what to answer.

The loss of the latter is the mean of -log P(y_t | x, y_<t) over the tokens y_t of the answers y, x
being what comes before an answer; a text alone is all answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from numgpt import formats
from numgpt.data.batch import Batch
from numgpt.data.corpus import TOKENS_FILE, TokensFile
from numgpt.data.example_set import ExampleSet, encode_examples
from numgpt.data.examples import Example, ExampleEncoder, last_answer, marked
from numgpt.data.finding import OTHER_WEIGHTS, STANDARD_INPUT
from numgpt.data.records import Record, find_record_files, read_records
from numgpt.messages import printable
from numgpt.models import LanguageModel
from numgpt.options import AboutOptions, OptionError, OptionWarning
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer.chat_formats import name_of
from numgpt.tokenizer.chat_programs import CHAT_TEMPLATES, PROMPT_TEMPLATES
from numgpt.tokenizer.chat_template import ChatTemplate
from numgpt.tokenizer.conversation import template_variables
from numgpt.tokenizer.sections import NAMED_TEMPLATES
from numgpt.training.checkpoint import RunState, check_disk, check_memory, save_tuned
from numgpt.training.defaults import MOST_LENGTH
from numgpt.training.records import Callback, Note
from numgpt.training.starting import check_not_replaced, replaced_files, run_files
from numgpt.training.tasks import NextTokens, RunTask
from numgpt.training.tune_config import TuningConfig

SAMPLE_TOKENS = 80


def _files(config: TuningConfig) -> tuple[list[str], list[str]]:
    """The files to train on, and those that are held out."""
    held_out: list[str] = []
    if not config.data:  # a task makes them
        return [], held_out
    if config.val_data is not None:
        try:
            held_out = find_record_files(config.val_data)
        except AboutOptions as error:
            raise error.renamed({"data": "val_data"}) from None
    return find_record_files(config.data), held_out


def drawn(records: Iterable[Record], config: TuningConfig) -> Iterator[tuple[Record, bool]]:
    """Records, of every 1 / val_fraction of which one is held out, drawn among them."""
    rng, chosen, next_held_out = np.random.default_rng([config.seed, 1]), 0, -1
    for number, record in enumerate(records):
        while config.val_fraction and next_held_out < number:
            next_held_out = int((chosen + rng.random()) / config.val_fraction)
            chosen += 1
        yield record, number == next_held_out


def _noting(count: int, tokenizer: BaseTokenizer, report: Callback) -> Callable[..., None]:
    """What notes the first examples that it is told of, with what is trained on marked."""
    left = iter(range(count))

    def note(example: Example, name: str) -> None:
        if next(left, None) is not None:
            text = printable(marked(example, tokenizer))
            what = f"{name}, " if name else ""
            report(Note(f"--- {what}trained on: the text between « and » ---\n{text}"))

    return note


class Tuning(RunTask):
    """Batches of examples, or of groups of them, of nearly equal length."""

    encoder: ClassVar[type[ExampleEncoder]] = ExampleEncoder
    group: ClassVar[int] = 1  # examples that are made of a record
    unit: ClassVar[str] = "example"
    config: TuningConfig

    @classmethod
    def prepare(
        cls, config: TuningConfig, out: Path, staged: Path, report: Callback
    ) -> tuple[RunState, BaseTokenizer]:
        files, held_out = _files(config)
        documents = [name for name in (*files, *held_out) if name != STANDARD_INPUT]
        check_not_replaced(documents, replaced_files(out))
        config.make_absolute()
        replaced = [one for one in (out, *(out / name for name in OTHER_WEIGHTS)) if run_files(one)]
        for name, path in config.needed_models():
            place = Path(path) if Path(path).is_dir() else Path(path).parent
            if any(os.path.samefile(there, place) for there in replaced):
                needed = f"{{{name}}} is what would be replaced, and the run needs it"
                raise OptionError(f"{needed}: name another {{out:name}}", **{name: path})
        # What trains as a whole is in memory of its own; the base of an adapter stays in its file.
        model, tokenizer = formats.load(config.model, mmap=config.lora_r > 0, dtype=config.stored)
        if config.chat_format is not None:
            tokenizer.chat_template = CHAT_TEMPLATES[config.chat_format]
        if model.adapter is not None:
            raise OptionError.of(
                config, "{model} is an adapter: merge it first (numgpt convert), or resume its run"
            )
        if model.in_fewer_bits:
            kept = f"{config.stored}, {model.parameters.nbytes / 1e6:,.1f} MB"
            report(Note(f"the base is kept in {kept}; its adapter in float32"))
        config.fit_context(model.config, MOST_LENGTH)
        if config.lora_r:
            config.lora_alpha = config.lora().lora_alpha
            with config.naming_adapter_options():
                model.add_adapter(config.lora(), seed=config.seed)
        cls.fit_model(model, tokenizer, config)
        config.validate()  # what was chosen beside what the model has decided
        shown = _noting(config.show, tokenizer, report)
        encoder = cls.encoder(tokenizer, template_variables(config.chat_vars))
        records = cls.records(config, files, held_out)
        tokens, counts = encode_examples(records, encoder, config.example_length, staged, shown)
        report(Note(str(counts)))
        if not tokens.conversations:  # a template of turns would write what the tuning never saw
            begins = bool(tokenizer.encode("", add_special_tokens=True))
            tokenizer.chat_template = PROMPT_TEMPLATES[begins]
            tokenizer.settings.pop(NAMED_TEMPLATES, None)
        elif tokenizer.chat_template is None:  # for transformers, what the markers tell
            tokenizer.chat_template = CHAT_TEMPLATES[name_of(ChatTemplate(tokenizer).format)]
        tokenizer.save_pretrained(staged)
        if config.chat_format is not None and not tokens.conversations:
            unused = "{chat_format:name} is not used: no example is a conversation"
            report(Note(OptionWarning(unused)))
        if (config.val_fraction or config.val_data) and not counts.held_out:
            raise OptionError(
                "no example is held out: raise {val_fraction:name}, or bring more examples"
            )
        config.set_schedule(counts.trained)
        config.validate()  # what was chosen beside what was not
        check_memory(config, model.config, model.num_parameters(trainable=True))
        check_disk(out, model)
        state = RunState.new(config, model, tokens)
        cls.stage(state, staged, report, encoder)
        save_tuned(model, staged, cls.keeps_head)
        return state, tokenizer

    def __init__(self, state: RunState, out: Path, tokenizer: BaseTokenizer):
        super().__init__(state, out, tokenizer)
        self.examples = ExampleSet(out, state.tokens, self.group)
        self.validates = len(self.examples.val) > 0

    @classmethod
    def fit_model(
        cls, model: LanguageModel, tokenizer: BaseTokenizer, config: TuningConfig
    ) -> None:
        """Give the model what it needs.  Raises OptionError for one that is not for this."""
        if model.score_head is not None:
            raise OptionError.of(config, "{model} is a reward model: it is not tuned to answer")

    @classmethod
    def records(
        cls, config: TuningConfig, files: list[str], held_out: list[str]
    ) -> Iterator[tuple[Record, bool]]:
        """What there is to learn from, each with whether it is held out."""
        kind = None
        for record, is_held_out in drawn(read_records(files), config):
            kind = record.kind
            yield record, is_held_out
        for record in read_records(held_out, kind) if held_out else ():
            yield record, True

    @classmethod
    def stage(cls, state: RunState, into: Path, report: Callback, encoder: ExampleEncoder) -> None:
        """Write what else belongs to a new run; the encoder has encoded its records."""

    @classmethod
    def encode_again(cls, config: TuningConfig, out: Path, tokenizer: BaseTokenizer) -> TokensFile:
        missing = f"{out / TOKENS_FILE} is missing, and"
        try:
            files, held_out = _files(config)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{missing} so are the data: {error}") from None
        if STANDARD_INPUT in (*files, *held_out):
            raise ValueError(f"{missing} the data came by standard input: put the file back")
        encoder = cls.encoder(tokenizer, template_variables(config.chat_vars))
        records = cls.records(config, files, held_out)
        return encode_examples(records, encoder, config.example_length, out)[0]

    def __str__(self) -> str:
        held_out = f", {len(self.examples.val):,} held out" if self.validates else ""
        count = len(self.examples.train)
        return f"{count:,} {self.unit}{'s' * (count != 1)} to train on{held_out}"

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
        example = self.examples.example(self.shown_number())
        prompt = example.ids[: max(1, int(np.argmax(example.loss_mask)))]
        room = self.state.model.context_length - len(prompt)
        ids = self.state.model.generate(
            prompt,
            max_new_tokens=max(1, min(SAMPLE_TOKENS, room)),
            eos_token_id=self.end_ids(),
            generation_config={},  # the likeliest token, whatever the model's files say
            tokenizer=self.tokenizer,
            slide=True,
        )[0]
        answer = self.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        return self.tokenizer.decode(prompt, skip_special_tokens=True)[-200:], answer

    def shown_number(self) -> int:
        """That of the example to show, held out if any is; another one each time."""
        numbers = self.examples.val if self.validates else self.examples.train
        turn = self.state.optimizer.steps // max(1, self.config.sample_every)
        return int(numbers[turn % len(numbers)])

    def first_prompt(self) -> str | None:
        """That of the first example to train on, where it has one, as it was written."""
        asked = last_answer(self.examples.example(int(self.examples.train[0])), self.end_ids())
        return asked and self.tokenizer.decode(asked[0], skip_special_tokens=True)

    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""
        if self.state.tokens.conversations:
            variables = template_variables(self.config.chat_vars)
            return ChatTemplate(self.tokenizer, variables).end_ids()
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]


class Examples(Tuning, NextTokens):
    """Supervised tuning."""

    statistics = True
