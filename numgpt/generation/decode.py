"""The decoding loop: prompt → logits → processors → token, then that token alone, and so on.

Every sequence has a slot of the KV cache, and goes its own way: prompts of unequal length differ in
how far their slots are filled, and a sequence that has ended leaves the batch. What a caller sees
is rectangular, padded on the left before the prompts and on the right after the ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numgpt.generation.options import DEFAULT_NEW_TOKENS, GenerationOptions
from numgpt.generation.processors import choose, process_logits
from numgpt.messages import shown
from numgpt.models.context import Context
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel

STOP_WINDOW = 4  # how many tokens more than a stop string has bytes are decoded to look for it


class LengthWarning(UserWarning):
    """A sequence ended because the model's context was full."""


def generate(
    model: LanguageModel, ids: Ids, attention_mask: Ids | None = None, **options: Any
) -> np.ndarray:
    """Continue one or several prompts.

    ids: (T,), (B, T) or lists of unequal length, which are padded on the left; attention_mask
    (B, T) is 0 at padding that is there already. The options are the fields of GenerationOptions.
    Returns (B · num_return_sequences, T'): prompts and continuations; those that ended early are
    filled up with pad_token_id. Raises ValueError for a prompt or an option that is invalid; warns
    with LengthWarning where the model's context ended a sequence.
    """
    request = _Request(model, ids, attention_mask, GenerationOptions.of(**options))
    for _ in request.steps():
        pass
    return request.ids


def generate_each(model: LanguageModel, ids: Ids, **options: Any) -> list[np.ndarray]:
    """As `generate`, but each sequence by itself, prompt and continuation without any padding."""
    request = _Request(model, ids, None, GenerationOptions.of(**options))
    for _ in request.steps():
        pass
    rows = zip(request.ids, request.starts, request.ends, strict=True)
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
    request = _Request(model, ids, attention_mask, GenerationOptions.of(**options), kv_cache)
    if len(request.ids) * request.options.num_return_sequences != 1:
        raise ValueError(
            "stream makes one sequence: pass one prompt and leave num_return_sequences at 1"
        )
    return (int(token[0]) for token in request.steps() if token[0] not in request.eos_token_ids)


class _Request:
    """One call of generate: the checked prompts, the options, and the sequences as they grow."""

    def __init__(
        self,
        model: LanguageModel,
        ids: Ids,
        attention_mask: Ids | None,
        options: GenerationOptions,
        kv_cache: KVCache | None = None,
    ):
        config = model.config
        options.validate(config.vocab_size)
        eos = config.eos_token_id if options.eos_token_id is None else options.eos_token_id
        eos = [] if eos is None else np.atleast_1d(eos).tolist()
        # A config may name a token of the family's usual vocabulary that this model's lacks.
        self.eos_token_ids = [id for id in eos if id < config.vocab_size]
        pad = options.pad_token_id
        self.pad_token_id = (
            pad if pad is not None else self.eos_token_ids[0] if self.eos_token_ids else 0
        )
        ids, mask = _pad_left(ids, attention_mask, self.pad_token_id)
        self.ids = model.check_ids(ids, any_length=options.slide)
        mask = _check_mask(mask, self.ids)
        # What is padding is no token of the prompt, wherever it stands.
        self.prompts = [row[real] for row, real in zip(self.ids, mask, strict=True)]
        self.mask = mask
        self.prompt_length = self.ids.shape[1]
        if options.max_new_tokens is not None:
            longest = self.prompt_length + options.max_new_tokens
        elif options.max_length is not None:
            longest = options.max_length
            if longest <= self.prompt_length:
                raise ValueError(
                    f"max_length={longest} counts the prompt, which has {self.prompt_length}"
                    " tokens already: raise it, or use max_new_tokens"
                )
        else:
            longest = self.prompt_length + DEFAULT_NEW_TOKENS
        self.longest = longest
        # Each sequence ends where its own tokens fill the context.
        shortest = min(map(len, self.prompts))
        room = self.prompt_length + model.context_length - shortest
        self.max_length = longest if options.slide else min(longest, room)
        self.cut_by_context = False
        if options.slide and kv_cache is not None:
            raise ValueError("slide=True cannot be combined with kv_cache, which has one context")
        if not options.do_sample and options.num_return_sequences > 1:
            warnings.warn(
                f"num_return_sequences={options.num_return_sequences} without do_sample=True:"
                " greedy decoding makes the same sequence each time",
                stacklevel=4,
            )
        if kv_cache is not None and len(kv_cache.lengths) != len(self.prompts):
            raise ValueError(
                f"kv_cache is for {len(kv_cache.lengths)} sequences, there are {len(self.prompts)}"
            )
        if kv_cache is not None and not kv_cache.length < shortest:
            raise ValueError(
                f"kv_cache holds {kv_cache.length} positions, the prompt has {shortest}"
                " tokens: at least the last must be new (truncate the cache)"
            )
        self.model = model
        self.options = options
        self.kv_cache = kv_cache

    def steps(self) -> Iterator[np.ndarray]:
        """Yields the newest tokens (n,) after each step; `ids` grows with them."""
        options, times = self.options, self.options.num_return_sequences
        rng = np.random.default_rng(options.seed) if options.do_sample else None
        # The prompts are computed once, whatever the number of sequences that continue them.
        self.cache, logits = self._read_prompts()
        self.cache = self.cache.repeat(times)
        logits = np.repeat(logits, times, axis=0)
        self._allocate(times)
        rows = np.arange(len(self.ids))  # which sequence is in which slot
        rows = self._leave(rows, [self._is_full(row, 0) for row in rows.tolist()])
        logits = logits[rows]
        for length in range(self.prompt_length, self.max_length):
            if not len(rows):
                break
            processed = process_logits(
                logits,
                self.occurred[rows, :length],
                options,
                self.eos_token_ids,
                self.prompt_length,
            )
            # Drawn for all sequences, so that none depends on when another one ends.
            levels = None if rng is None else rng.random(len(self.ids))[rows]
            tokens = choose(processed, levels)
            newest = np.full(len(self.ids), self.pad_token_id)
            newest[rows] = tokens
            self.sequences[:, length] = newest
            self.occurred[rows, length] = tokens
            self.ids = self.sequences[:, : length + 1]
            self.ends[rows] = length + 1
            yield newest
            rows = self._leave(rows, [self._has_ended(row) for row in rows.tolist()])
            if len(rows) and length + 1 < self.max_length:
                logits = self._read(rows)
        if self.cut_by_context:
            warnings.warn(
                "the text ends here because it fills the model's context of"
                f" {self.model.context_length} tokens ({self.model.config.context_field})",
                LengthWarning,
                stacklevel=3,
            )

    def _read_prompts(self) -> tuple[KVCache, np.ndarray]:
        """A cache with the prompts in it, and the logits (B, V) after each."""
        context = self.model.context_length
        prompts = [
            prompt if len(prompt) <= context else prompt[-self._kept :] for prompt in self.prompts
        ]
        capacity = min(self.max_length, context)
        cache = self.kv_cache or KVCache(self.model, len(prompts), capacity)
        new = [prompt[cache.length :] for prompt in prompts]
        return cache, self._pass(cache, new, 0)

    def _allocate(self, times: int) -> None:
        """Arrays for whole sequences: each step fills a column, and memory that is never reached is
        never taken."""
        count = len(self.ids) * times
        self.sequences = np.empty((count, self.max_length), np.int64)
        self.sequences[:, : self.prompt_length] = np.repeat(self.ids, times, axis=0)
        mask = np.repeat(self.mask, times, axis=0)
        self.ids = self.sequences[:, : self.prompt_length]
        self.occurred = np.empty_like(self.sequences)  # -1 at padding
        self.occurred[:, : self.prompt_length] = np.where(mask, self.ids, -1)
        self.starts = mask.argmax(axis=1)
        self.ends = np.full(count, self.prompt_length)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Take in the newest token of each sequence -> logits (n, V) after it."""
        cache, full = self.cache, self.cache.lengths[: len(rows)] == self.model.context_length
        for slot in np.flatnonzero(full).tolist():  # what stays is computed again
            cache.truncate(0, slot)
            seen = self.occurred[rows[slot], : self.ends[rows[slot]]]
            kept = seen[seen >= 0][-self._kept : -1]
            if len(kept):
                self._pass(cache, [kept], slot)
        newest = [self.ids[row, -1:] for row in rows]
        return self._pass(cache, newest, 0)

    def _pass(self, cache: KVCache, tokens: Sequence[np.ndarray], first: int) -> np.ndarray:
        """New tokens for the slots from `first` on -> logits (n, V) after the last of each."""
        counts = np.array([len(row) for row in tokens])
        ids = np.zeros((len(tokens), counts.max()), np.int64)
        for row, new in zip(ids, tokens, strict=True):
            row[: len(new)] = new
        view = cache.view(counts, first, first + len(tokens))
        hidden, _ = self.model.forward(ids, Context(len(ids), kv=view, last_only=True))
        return self.model.logits(hidden)

    @property
    def _kept(self) -> int:
        """How many tokens of a full context stay: its newer half."""
        return max(1, self.model.context_length // 2)

    def _has_ended(self, row: int) -> bool:
        made = self.ids[row, self.prompt_length :]
        if int(made[-1]) in self.eos_token_ids:
            return True
        if self.options.stop_strings and self._stops(made):
            return True
        return self._is_full(row, len(made))

    def _is_full(self, row: int, made: int) -> bool:
        """Whether a sequence ends here because its tokens fill the context."""
        prompt = self.prompts[row // self.options.num_return_sequences]
        full = len(prompt) + made >= self.model.context_length and not self.options.slide
        self.cut_by_context |= full and made < self.longest - self.prompt_length
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

    def _stops(self, new_ids: np.ndarray) -> bool:
        """Whether the newest token completed a stop string."""
        tokenizer = self.options.tokenizer
        assert tokenizer is not None  # validate() has seen to it
        longest = max(len(stop.encode()) for stop in self.options.stop_strings)
        tail = tokenizer.decode(new_ids[-(longest + STOP_WINDOW) :])
        return any(stop in tail for stop in self.options.stop_strings)


def _pad_left(ids: Ids, attention_mask: Ids | None, pad_token_id: int) -> tuple[Ids, Ids | None]:
    """Prompts of unequal length -> rows of equal length and the mask of what is no padding."""
    rows = [row for row in ids if isinstance(row, (Sequence, np.ndarray))] if _is_rows(ids) else []
    if len({len(row) for row in rows}) < 2:
        return ids, attention_mask
    if attention_mask is not None:
        raise ValueError(
            "attention_mask goes with prompts of equal length; unequal ones are padded by generate"
        )
    for number, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if np.asarray(row).dtype.kind not in "iu":
            raise ValueError(f"prompt {number} is {shown(row)}: token ids are integers")
    width = max(map(len, rows))
    padded = np.full((len(rows), width), pad_token_id, np.int64)
    mask = np.zeros((len(rows), width), bool)
    for target, real, row in zip(padded, mask, rows, strict=True):
        target[width - len(row) :] = row
        real[width - len(row) :] = True
    return padded, mask


def _is_rows(ids: Ids) -> bool:
    """Whether these are several prompts, in a list."""
    return isinstance(ids, Sequence) and all(hasattr(row, "__len__") for row in ids)


def _check_mask(mask: Ids | None, ids: np.ndarray) -> np.ndarray:
    """(B, T) bool, False at padding."""
    if mask is None:
        return np.ones(ids.shape, bool)
    mask = np.atleast_2d(np.asarray(mask)).astype(bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {mask.shape}, ids {ids.shape}: they must be equal"
        )
    if not mask[:, -1].all():
        raise ValueError("attention_mask marks a prompt's last token as padding: pad on the left")
    return mask
