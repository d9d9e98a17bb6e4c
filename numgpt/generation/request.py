"""What a call of generate asks for, checked: prompts, options, and the model that reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from numgpt.generation.options import DEFAULT_NEW_TOKENS, GenerationOptions, token_ids
from numgpt.messages import shown
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import Ids, LanguageModel

STOP_WINDOW = 4  # how many tokens more than a stop string has bytes are decoded to look for it


class Request:
    """Prompts and options that fit the model and each other."""

    def __init__(
        self,
        model: LanguageModel,
        ids: Ids,
        attention_mask: Ids | None,
        options: GenerationOptions,
        kv_cache: KVCache | None = None,
    ):
        """Raises ValueError for a prompt or an option that is invalid."""
        config = model.config
        options.validate(config.vocab_size)
        eos, pad = options.eos_token_id, options.pad_token_id
        self.eos_token_ids = (
            token_ids(model, "eos_token_id") if eos is None else np.atleast_1d(eos).tolist()
        )
        pads = token_ids(model, "pad_token_id") if pad is None else [pad]
        self.pad_token_id = next(iter([*pads, *self.eos_token_ids]), 0)
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
        if options.slide and kv_cache is not None:
            raise ValueError("slide=True cannot be combined with kv_cache, which has one context")
        if not options.do_sample and options.num_return_sequences > options.num_beams:
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

    def read_prompts(self) -> tuple[KVCache, np.ndarray]:
        """A cache with the prompts in it, and the logits (B, V) after each."""
        context = self.model.context_length
        prompts = [
            prompt if len(prompt) <= context else prompt[-self.kept :] for prompt in self.prompts
        ]
        capacity = min(self.max_length, context)
        cache = self.kv_cache or KVCache(self.model, len(prompts), capacity)
        new = [prompt[cache.length :] for prompt in prompts]
        return cache, self.read(cache, new, 0)

    def read_prompt(self, number: int) -> tuple[KVCache, np.ndarray]:
        """A cache of this prompt alone, and the logits (1, V) after it."""
        prompt = self.prompts[number]
        room = self.longest - self.prompt_length + len(prompt)
        cache = KVCache(self.model, 1, min(room, self.model.context_length))
        return cache, self.read(cache, [prompt], 0)

    def read(self, cache: KVCache, tokens: Sequence[np.ndarray], first: int) -> np.ndarray:
        """New tokens for the slots from `first` on -> logits (n, V) after the last of each."""
        counts = np.array([len(row) for row in tokens])
        ids = np.zeros((len(tokens), counts.max()), np.int64)
        for row, new in zip(ids, tokens, strict=True):
            row[: len(new)] = new
        view = cache.view(counts, first, first + len(tokens))
        return self.model.unembedding.logits(self.model.hidden(ids, view, last_only=True))

    @property
    def kept(self) -> int:
        """How many tokens of a full context stay: its newer half."""
        return max(1, self.model.context_length // 2)

    def has_ended(self, made: np.ndarray) -> bool:
        """Whether the newest of the tokens made (n,) ends the sequence."""
        if int(made[-1]) in self.eos_token_ids:
            return True
        return bool(self.options.stop_strings) and self._stops(made)

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
