"""The decoding loop: prompt → logits → processors → token, then that token alone, and so on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from numgpt.generation.cache import KVCache
from numgpt.generation.options import DEFAULT_NEW_TOKENS, GenerationOptions
from numgpt.generation.processors import choose, process_logits
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
    filled up with pad_token_id. Raises ValueError for a prompt or an option that can't be; warns
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
    starts = np.zeros(len(request.ids), np.int64)
    if request.mask is not None:
        times = request.options.num_return_sequences
        starts = np.repeat(request.mask.argmax(axis=1), times)
    rows = zip(request.ids, starts, request.lengths, strict=True)
    return [row[start:length] for row, start, length in rows]


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
    """One call of generate: the checked prompt, the options, and the sequences as they grow."""

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
        self.mask = _check_mask(mask, self.ids)
        self.prompt_length = self.ids.shape[1]
        if options.max_new_tokens is not None:
            longest = self.prompt_length + options.max_new_tokens
        elif options.max_length is not None:
            longest = options.max_length
            if longest <= self.prompt_length:
                raise ValueError(
                    f"max_length={longest} counts the prompt, which has {self.prompt_length}"
                    " tokens already:"
                    " raise it, or use max_new_tokens"
                )
        else:
            longest = self.prompt_length + DEFAULT_NEW_TOKENS
        self.max_length = longest if options.slide else min(longest, model.context_length)
        self.cut_by_context = longest > self.max_length
        if options.slide and kv_cache is not None:
            raise ValueError("slide=True cannot be combined with kv_cache, which has one context")
        if not options.do_sample and options.num_return_sequences > 1:
            warnings.warn(
                f"num_return_sequences={options.num_return_sequences} without do_sample=True:"
                " greedy decoding makes"
                " the same sequence each time",
                stacklevel=4,
            )
        if kv_cache is not None and not kv_cache.length < self.prompt_length:
            raise ValueError(
                f"kv_cache holds {kv_cache.length} positions, the prompt has {self.prompt_length}"
                " tokens: at least the last must be new (truncate the cache)"
            )
        self.model = model
        self.options = options
        self.kv_cache = kv_cache

    def steps(self) -> Iterator[np.ndarray]:
        """Yields the newest tokens (n,) after each step; `ids` grows with them."""
        model, options, times = self.model, self.options, self.options.num_return_sequences
        context, kept = model.context_length, max(1, model.context_length // 2)
        rng = np.random.default_rng(options.seed) if options.do_sample else None
        cache = self.kv_cache or KVCache(model, len(self.ids), min(self.max_length, context))
        mask = self.mask
        # The first token that the model sees, and the first that it has not seen yet.
        first = 0 if self.prompt_length <= context else self.prompt_length - kept
        new = first + cache.length
        # The prompts are computed once, whatever the number of sequences that continue them.
        logits = self._last_logits(self.ids[:, new:], cache, _from(mask, first))
        logits = np.repeat(logits, times, axis=0)
        cache = cache.repeat(times)
        # Each step fills a column; memory that is never reached is never taken.
        sequences = np.empty((len(logits), self.max_length), np.int64)
        sequences[:, : self.prompt_length] = np.repeat(self.ids, times, axis=0)
        self.ids = sequences[:, : self.prompt_length]
        self.lengths = np.full(len(sequences), self.prompt_length)
        occurred = sequences
        if mask is not None:
            mask = np.repeat(mask, times, axis=0)
            occurred = np.empty_like(sequences)
            occurred[:, : self.prompt_length] = np.where(mask, self.ids, -1)
        ended = np.zeros(len(sequences), bool)
        for length in range(self.prompt_length, self.max_length):
            processed = process_logits(
                logits, occurred[:, :length], options, self.eos_token_ids, self.prompt_length
            )
            token = np.where(ended, self.pad_token_id, choose(processed, rng))
            sequences[:, length] = occurred[:, length] = token
            self.ids = sequences[:, : length + 1]
            self.lengths[~ended] = length + 1
            ended |= [id in self.eos_token_ids for id in token.tolist()]
            if options.stop_strings:
                ended |= [self._stops(sequence[self.prompt_length :]) for sequence in self.ids]
            yield token
            if ended.all():
                return
            if length + 1 < self.max_length:
                if mask is not None:
                    mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
                new = length
                if cache.length == context:  # full: what stays is computed again
                    first = new = length + 1 - kept
                    cache.truncate(0)
                logits = self._last_logits(self.ids[:, new:], cache, _from(mask, first))
        if self.cut_by_context:
            warnings.warn(
                f"the text ends here because it fills the model's context of {self.max_length}"
                f" tokens ({model.context_field})",
                LengthWarning,
                stacklevel=3,
            )

    def _last_logits(self, ids: np.ndarray, cache: KVCache, mask: np.ndarray | None) -> np.ndarray:
        """ids (B, T) -> logits (B, V) after the last of them."""
        x, _ = self.model.forward(ids, kv_cache=cache, key_mask=mask, last_only=True)  # (B, C)
        return self.model.logits(x)

    def _stops(self, new_ids: np.ndarray) -> bool:
        """Whether the newest token completed a stop string."""
        longest = max(len(stop.encode()) for stop in self.options.stop_strings)
        tail = self.options.tokenizer.decode(new_ids[-(longest + STOP_WINDOW) :])
        return any(stop in tail for stop in self.options.stop_strings)


def _from(mask: np.ndarray | None, first: int) -> np.ndarray | None:
    """The columns of a mask from `first` on."""
    return None if mask is None else mask[:, first:]


def _pad_left(ids: Ids, attention_mask: Ids | None, pad_token_id: int) -> tuple[Ids, Ids | None]:
    """Prompts of unequal length -> rows of equal length and the mask of what is no padding."""
    rows = (
        isinstance(ids, Sequence) and len(ids) > 0 and all(hasattr(row, "__len__") for row in ids)
    )
    if not rows or len({len(row) for row in ids}) == 1:
        return ids, attention_mask
    if attention_mask is not None:
        raise ValueError(
            "attention_mask goes with prompts of equal length; unequal ones are padded by generate"
        )
    for number, row in enumerate(ids):
        if len(row) == 0:
            raise ValueError(f"prompt {number} is empty: give at least one token")
    width = max(map(len, ids))
    padded = np.full((len(ids), width), pad_token_id, np.int64)
    mask = np.zeros((len(ids), width), bool)
    for target, real, row in zip(padded, mask, ids, strict=True):
        target[width - len(row) :] = row
        real[width - len(row) :] = True
    return padded, mask


def _check_mask(mask: Ids | None, ids: np.ndarray) -> np.ndarray | None:
    """(B, T) bool; None where nothing is padding."""
    if mask is None:
        return None
    mask = np.atleast_2d(np.asarray(mask)).astype(bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {mask.shape}, ids {ids.shape}: they must be equal"
        )
    if not mask[:, -1].all():
        raise ValueError("attention_mask marks a prompt's last token as padding: pad on the left")
    return None if mask.all() else mask
