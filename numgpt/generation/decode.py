"""The decoding loop: prompt → logits → processors → token, then that token alone, and so on.

Every sequence has a slot of the KV cache, and goes its own way: prompts of unequal length differ in
how far their slots are filled, and a sequence that has ended leaves the batch. What a caller sees
is rectangular, padded on the left before the prompts and on the right after the ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from numgpt.generation.beam_search import beam_search
from numgpt.generation.options import GenerationOptions
from numgpt.generation.processors import choose, process_logits
from numgpt.generation.request import Request
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel


class LengthWarning(UserWarning):
    """A sequence ended because the model's context was full."""


@dataclass
class GenerateOutput:
    """What `generate` returns with return_dict_in_generate=True; n is B · num_return_sequences."""

    sequences: np.ndarray  # (n, T')
    lengths: np.ndarray  # (n,): how many tokens each got, padding not counted
    # For each new token (n, V): what it was chosen by, after all processors (output_scores=True),
    # and the model's own logits (output_logits=True). Of a sequence that has ended, only
    # pad_token_id is possible.
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    sequences_scores: np.ndarray | None = None  # (n,), of beams: log P / length ** length_penalty


@overload
def generate(
    model: LanguageModel,
    ids: Ids,
    attention_mask: Ids | None = None,
    *,
    return_dict_in_generate: Literal[True],
    **options: Any,
) -> GenerateOutput: ...


@overload
def generate(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None = None, **options: Any
) -> np.ndarray: ...


def generate(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None = None, **options: Any
) -> np.ndarray | GenerateOutput:
    """Continue one or several prompts.

    ids: (T,), (B, T) or lists of unequal length, which are padded on the left; attention_mask
    (B, T) is 0 at padding that is there already. The options are the fields of GenerationOptions;
    of those not given the model's generation_config decides, where it has them.
    Returns (B · num_return_sequences, T'): prompts and continuations; those that ended early are
    filled up with pad_token_id. With return_dict_in_generate=True returns a GenerateOutput. Raises
    ValueError for a prompt or an option that is invalid; warns with LengthWarning where the model's
    context ended a sequence.
    """
    chosen = GenerationOptions.for_model(model, options)
    sequences = _continued(model, ids, attention_mask, chosen)
    if not sequences.request.options.return_dict_in_generate:
        return sequences.ids
    scores, logits = sequences.scores, sequences.logits
    return GenerateOutput(
        sequences.ids,
        sequences.ends - sequences.request.prompt_length,
        None if scores is None else tuple(scores),
        None if logits is None else tuple(logits),
        sequences.sequences_scores,
    )


def generate_each(model: LanguageModel, ids: Ids, **options: Any) -> list[np.ndarray]:
    """As `generate`, but each sequence by itself, prompt and continuation without any padding."""
    sequences = _continued(model, ids, None, GenerationOptions.for_model(model, options))
    rows = zip(sequences.ids, sequences.starts, sequences.ends, strict=True)
    return [row[start:end] for row, start, end in rows]


def stream(
    model: LanguageModel,
    ids: Ids,
    attention_mask: Ids | None = None,
    kv_cache: KVCache | None = None,
    **options: Any,
) -> Iterator[int]:
    """Continue one prompt and yield each new token as it is made, up to and without the end-of-text
    token.

    kv_cache may hold the keys and values of the prompt's first tokens, from an earlier call: then
    only the rest is computed, and it takes in what is. It needs room for all tokens but the last.
    """
    chosen = GenerationOptions.for_model(model, options, single=True)
    request = Request(model, ids, attention_mask, chosen, kv_cache)
    if len(request.ids) * request.options.num_return_sequences != 1:
        raise ValueError(
            "stream makes one sequence: pass one prompt and leave num_return_sequences at 1"
        )
    for name in ("num_beams", "return_dict_in_generate"):
        if getattr(request.options, name) != getattr(GenerationOptions, name):
            raise ValueError(f"{name} is for generate: stream yields each token as it is made")
    steps = _Sequences(request).steps()
    return (int(token[0]) for token in steps if token[0] not in request.eos_token_ids)


def _continued(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None, options: GenerationOptions
) -> _Sequences:
    sequences = _Sequences(Request(model, ids, attention_mask, options))
    if options.num_beams > 1:
        sequences.take(beam_search(sequences.request))
    else:
        for _ in sequences.steps():
            pass
    return sequences


class _Sequences:
    """The sequences of a request, as they grow."""

    def __init__(self, request: Request):
        self.request = request
        self.ids = request.ids
        options = request.options
        self.cut_by_context = False
        self.scores: list[np.ndarray] | None = [] if options.output_scores else None
        self.logits: list[np.ndarray] | None = [] if options.output_logits else None
        self.sequences_scores: np.ndarray | None = None

    def steps(self) -> Iterator[np.ndarray]:
        """Yields the newest tokens (n,) after each step; `ids` grows with them."""
        request, options = self.request, self.request.options
        times = options.num_return_sequences
        rng = np.random.default_rng(options.seed) if options.do_sample else None
        # The prompts are computed once, whatever the number of sequences that continue them.
        self.cache, logits = request.read_prompts()
        self.cache = self.cache.repeat(times)
        logits = np.repeat(logits, times, axis=0)
        self._allocate()
        rows = np.arange(len(self.ids))  # which sequence is in which slot
        rows = self._leave(rows, [self._is_full(row, 0) for row in rows.tolist()])
        logits = logits[rows]
        for length in range(request.prompt_length, request.max_length):
            if not len(rows):
                break
            processed = process_logits(
                logits,
                self.occurred[rows, :length],
                options,
                request.eos_token_ids,
                request.prompt_length,
                request.pad_token_id,
            )
            self._keep(self.scores, rows, processed)
            self._keep(self.logits, rows, logits)
            # Drawn for all sequences, so that none depends on when another one ends.
            levels = None if rng is None else rng.random(len(self.ids))[rows]
            tokens = choose(processed, levels)
            newest = np.full(len(self.ids), request.pad_token_id)
            newest[rows] = tokens
            self.sequences[:, length] = newest
            self.occurred[rows, length] = tokens
            self.ids = self.sequences[:, : length + 1]
            self.ends[rows] = length + 1
            yield newest
            rows = self._leave(rows, [self._has_ended(row) for row in rows.tolist()])
            if len(rows) and length + 1 < request.max_length:
                logits = self._read(rows)
        self._warn()

    def take(self, found: list[tuple[float, np.ndarray]]) -> None:
        """Have the continuations that a search has found, each with its score."""
        request = self.request
        self._allocate()
        self.sequences_scores = np.array([score for score, _ in found])
        longest = request.prompt_length + max(len(made) for _, made in found)
        for row, (_, made) in enumerate(found):
            end = self.ends[row] = request.prompt_length + len(made)
            self.sequences[row, request.prompt_length : end] = made
            self.sequences[row, end:longest] = request.pad_token_id
            if not len(made) or made[-1] not in request.eos_token_ids:
                self._is_full(row, len(made))
        self.ids = self.sequences[:, :longest]
        self._warn()

    def _warn(self) -> None:
        if self.cut_by_context:
            model = self.request.model
            warnings.warn(
                "the text ends here because it fills the model's context of"
                f" {model.context_length} tokens ({model.config.context_field})",
                LengthWarning,
                stacklevel=4,
            )

    def _keep(self, kept: list[np.ndarray] | None, rows: np.ndarray, values: np.ndarray) -> None:
        """Keep values (rows, V) of the sequences that go on; of the others, the padding is sure."""
        if kept is not None:
            of_all = np.full((len(self.ids), values.shape[1]), -np.inf, values.dtype)
            of_all[:, self.request.pad_token_id] = 0
            of_all[rows] = values
            kept.append(of_all)

    def _allocate(self) -> None:
        """Arrays for whole sequences: each step fills a column, and memory that is never reached is
        never taken."""
        request = self.request
        times, length = request.options.num_return_sequences, request.prompt_length
        count = len(request.ids) * times
        self.sequences = np.empty((count, request.max_length), np.int64)
        self.sequences[:, :length] = np.repeat(request.ids, times, axis=0)
        mask = np.repeat(request.mask, times, axis=0)
        self.ids = self.sequences[:, :length]
        self.occurred = np.empty_like(self.sequences)  # -1 at padding
        self.occurred[:, :length] = np.where(mask, self.ids, -1)
        self.starts = mask.argmax(axis=1)
        self.ends = np.full(count, length)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Take in the newest token of each sequence -> logits (n, V) after it."""
        request, cache = self.request, self.cache
        full = self.cache.lengths[: len(rows)] == request.model.context_length
        for slot in np.flatnonzero(full).tolist():  # what stays is computed again
            cache.truncate(0, slot)
            seen = self.occurred[rows[slot], : self.ends[rows[slot]]]
            kept = seen[seen >= 0][-request.kept : -1]
            if len(kept):
                request.read(cache, [kept], slot)
        newest = [self.ids[row, -1:] for row in rows]
        return request.read(cache, newest, 0)

    def _has_ended(self, row: int) -> bool:
        request = self.request
        made = self.ids[row, request.prompt_length :]
        return request.has_ended(made) or self._is_full(row, len(made))

    def _is_full(self, row: int, made: int) -> bool:
        """Whether a sequence ends here because its tokens fill the context."""
        request = self.request
        prompt = request.prompts[row // request.options.num_return_sequences]
        full = len(prompt) + made >= request.model.context_length and not request.options.slide
        self.cut_by_context |= full and made < request.longest - request.prompt_length
        return full

    def _leave(self, rows: np.ndarray, ended: list[bool]) -> np.ndarray:
        """Take ended sequences out of their slots: the last slot's moves into the hole."""
        rows = rows.copy()
        for slot in reversed(np.flatnonzero(ended)):
            last = len(rows) - 1
            if slot != last:
                self.cache.move(last, slot)
                rows[slot] = rows[last]
            rows = rows[:last]
        return rows
