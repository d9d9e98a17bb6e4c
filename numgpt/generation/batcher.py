"""Sequences that decode together: logits → processors → token → again.

Each sequence has a slot of one KV cache, and goes its own way there: with options, a generator and
an end of its own, so that its text does not depend on its neighbours. One that ends leaves its slot
to one that waits. Prompts are read whole, several at once, while nothing else is going on; while
others decode, in parts of at most CHUNK tokens, one part a step, so that nobody waits for long.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Collection, Iterator

import numpy as np

from numgpt.generation.endings import ends_with
from numgpt.generation.options import GenerationOptions, eos_and_pad
from numgpt.generation.processors import choose, process_logits
from numgpt.layers.softmax import log_softmax
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import LanguageModel

Tokens = Collection[np.ndarray | array]
CHUNK = 64  # tokens of prompts, in a step in which others decode


class Sequence:
    """A prompt and its continuation, as it grows."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: np.ndarray,
        options: GenerationOptions,
        rng: np.random.Generator | None,
        shown: np.ndarray,
    ):
        self.prompt, self.options, self.rng = prompt, options, rng
        self.shown = shown  # the prompt as processors see it: with -1 at padding
        self.eos_token_ids, self.pad_token_id = eos_and_pad(model, options)
        self.least, self.most = options.limits(len(shown))  # new tokens
        # How many the context leaves room for:
        self.room = math.inf if options.slide else model.context_length - len(prompt)
        self.made = array("q")  # the new tokens
        # Of each new token, with return_dict_in_generate: its log-probability by the model's own
        # distribution, and by the one that it was chosen from.
        self.logprobs: list[float] = []
        self.sampled_logprobs: list[float] = []
        self.scores: list[np.ndarray] = []  # (V,) each, after all processors (output_scores)
        self.logits: list[np.ndarray] = []  # (V,) each, the model's own (output_logits)
        # "stop" (by a token or a text), "length", "context" (full), "cancelled" or "error"
        self.finish_reason: str | None = "context" if self.room < 1 else None
        self.error: ValueError | None = None  # of its processors
        # Sequences for which this is equal are processed together.
        self.processing = (*options.processing(), *self.eos_token_ids, None, self.pad_token_id)

    def take(self, token: int, logits: np.ndarray, processed: np.ndarray) -> None:
        """Grow by a token, chosen by processed (V,), which is made of the model's logits (V,)."""
        self.made.append(token)
        if self.options.return_dict_in_generate:
            self.logprobs.append(float(log_softmax(logits)[token]))
            self.sampled_logprobs.append(float(log_softmax(processed)[token]))
        if self.options.output_scores:
            self.scores.append(processed)
        if self.options.output_logits:
            self.logits.append(logits.copy())
        if ends_with(self.made, self.eos_token_ids, self.options):
            self.finish_reason = "stop"
        elif len(self.made) >= self.most:
            self.finish_reason = "length"
        elif len(self.made) >= self.room:
            self.finish_reason = "context"


class Prompt:
    """What the sequences that continue it share: it is read once."""

    def __init__(self, ids: np.ndarray, done: int):
        self.ids = ids
        self.done = done  # tokens that are in the slot after those that decode
        self.sequences: deque[Sequence] = deque()  # which wait
        # Once it has been read, where more wait than slots are free:
        self.cache: KVCache | None = None
        self.logits: np.ndarray | None = None  # (V,) after it


class Batcher:
    """Sequences in the slots of one KV cache.

    >>> import numgpt
    >>> model = numgpt.GPT(numgpt.GPTConfig(8, 4, 4, 1, 1), seed=0)
    >>> batcher = Batcher(model, slots=2)
    >>> options = GenerationOptions(max_new_tokens=3)
    >>> sequences = [batcher.add(np.array(prompt), options) for prompt in ([1], [2, 3], [1])]
    >>> while batcher.busy:
    ...     for ended in batcher.step():
    ...         assert ended.finish_reason == "length"
    >>> sequences[0].made == sequences[2].made
    True
    """

    def __init__(self, model: LanguageModel, slots: int, cache: KVCache | None = None):
        """With a cache, of one slot, which may hold the first tokens of the first prompt."""
        self.model, self.slots, self.cache = model, slots, cache
        self.decoding: list[Sequence] = []  # the one in slot 0, in slot 1, …
        self.waiting: dict[bytes, Prompt] = {}  # by its ids, in the order in which they came
        self._done = 0 if cache is None else cache.length

    @property
    def busy(self) -> bool:
        """Whether there is something left to do."""
        return bool(self.waiting or self.decoding)

    def add(
        self,
        prompt: np.ndarray,
        options: GenerationOptions,
        rng: np.random.Generator | None = None,
        shown: np.ndarray | None = None,
    ) -> Sequence:
        """Have a prompt (n,) continued, as soon as a slot is free.

        The options are those of `generate`, validated; a generator for sampling is made of their
        seed where none is given. `shown` is the prompt as processors see it, -1 at padding. One
        that fills the context has ended already: see its finish_reason.
        """
        if options.do_sample and rng is None:
            rng = np.random.default_rng(options.seed)
        shown = prompt if shown is None else shown
        sequence = Sequence(self.model, prompt, options, rng, shown)
        if sequence.finish_reason is None:
            if len(prompt) > self.model.context_length:
                prompt = prompt[-self._kept :]
            key = prompt.tobytes()
            if key not in self.waiting:
                self.waiting[key], self._done = Prompt(prompt, self._done), 0
            self.waiting[key].sequences.append(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """A token more for each sequence that decodes -> those that have ended with it."""
        logits = [self._read_newest(), *self._join()]  # after all tokens of each sequence
        stacked = logits[0] if len(logits) == 1 else np.concatenate(logits)  # (n, V)
        for rows in self._equal_options():
            self._choose(rows, stacked)
        return self._leave()

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence here; its slot is free from now on."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = "cancelled"
        for key, prompt in list(self.waiting.items()):
            if sequence in prompt.sequences:
                prompt.sequences.remove(sequence)
                if not prompt.sequences:
                    del self.waiting[key]
        self._leave()

    # --- logits → processors → token ---

    def _read_newest(self) -> np.ndarray:
        """Take in the newest token of each sequence -> logits (n, V)."""
        if not self.decoding:
            return np.empty((0, self.model.config.vocab_size), self.model.parameters.dtype)
        for slot, sequence in enumerate(self.decoding):
            if self._cache.lengths[slot] == self.model.context_length:
                self._slide(slot, sequence)
        return read(self.model, self._cache, [s.made[-1:] for s in self.decoding], 0)

    def _equal_options(self) -> Iterator[list[int]]:
        """The rows of the sequences that decode, in groups of equal options."""
        groups: dict[tuple, list[int]] = {}
        for row, sequence in enumerate(self.decoding):
            groups.setdefault(sequence.processing, []).append(row)
        return iter(groups.values())

    def _choose(self, rows: list[int], logits: np.ndarray) -> None:
        """A token for each of these rows, of equal options.  What is wrong with one of them ends
        that one alone."""
        sequences = [self.decoding[row] for row in rows]
        first, own = sequences[0], logits if len(rows) == len(logits) else logits[rows]
        may_end = np.array([len(sequence.made) >= sequence.least for sequence in sequences])
        try:
            processed = process_logits(
                own,
                _shown(sequences),
                first.options,
                first.eos_token_ids,
                may_end,
                first.pad_token_id,
            )
        except ValueError as error:
            if len(rows) > 1:
                for row in rows:
                    self._choose([row], logits)
            else:
                first.finish_reason, first.error = "error", error
            return
        levels = [s.rng.random() for s in sequences if s.rng is not None]
        tokens = choose(processed, np.array(levels) if first.options.do_sample else None)
        for row, (sequence, token) in enumerate(zip(sequences, tokens.tolist(), strict=True)):
            sequence.take(token, own[row], processed[row])

    # --- prompts, and who is in which slot ---

    def _join(self) -> Iterator[np.ndarray]:
        """Read prompts as far as slots are free, and put the sequences that continue them among
        those that decode; yields the logits (k, V) after the prompts of each k sequences."""
        room: float = CHUNK if self.decoding else math.inf
        while room > 0 and self.waiting and len(self.decoding) < self.slots:
            self._reserve()
            prompts, first = self._next_prompts(math.isinf(room)), len(self.decoding)
            for number, prompt in enumerate(prompts):
                self._cache.truncate(prompt.done, first + number)
            if prompts[0].logits is None:
                parts = [p.ids[p.done :][: int(min(room, len(p.ids)))] for p in prompts]
                logits = read(self.model, self._cache, parts, first)
                room -= sum(map(len, parts))
                for prompt, part, row in zip(prompts, parts, logits, strict=True):
                    prompt.done += len(part)
                    prompt.logits = row if prompt.done == len(prompt.ids) else None
            elif (kept := prompts[0].cache) is not None:
                self._cache.move(0, first, kept)
            if prompts[0].logits is not None:
                yield self._seat(prompts, first)

    def _next_prompts(self, at_once: bool) -> list[Prompt]:
        """Those to be read in one pass: several where that is allowed, all from their beginning."""
        prompts = [*self.waiting.values()][: self.slots - len(self.decoding)]
        return prompts if at_once and not prompts[0].done else prompts[:1]

    def _seat(self, prompts: list[Prompt], first: int) -> np.ndarray:
        """Give free slots to the sequences that continue prompts, which are in the slots from
        `first` on -> the logits (k, V) after them."""
        free = self.slots - first
        sources: list[int] = []  # of each sequence, the place of its prompt
        for place, prompt in enumerate(prompts):
            while prompt.sequences and len(sources) < free - (len(prompts) - 1 - place):
                self.decoding.append(prompt.sequences.popleft())
                sources.append(place)
            if prompt.sequences and prompt.cache is None:
                prompt.cache = self._cache.selected([first + place])
        # From the last on: a prompt's own slot comes after all that are copied from it.
        for place in reversed(range(len(sources))):
            if sources[place] != place:
                self._cache.move(first + sources[place], first + place)
        for key, prompt in list(self.waiting.items()):
            if not prompt.sequences:
                del self.waiting[key]
        return np.stack([prompts[place].logits for place in sources])  # type: ignore[misc]

    def _leave(self) -> list[Sequence]:
        """Take those that have ended out of their slots: the last slot's moves into the hole, and
        the prompt that is being read moves up behind it."""
        ended = [sequence for sequence in self.decoding if sequence.finish_reason is not None]
        for slot in reversed(range(len(self.decoding))):
            if self.decoding[slot].finish_reason is None:
                continue
            last = self.decoding.pop()
            if slot < len(self.decoding):
                self._cache.move(len(self.decoding), slot)
                self.decoding[slot] = last
        front = next(iter(self.waiting.values()), None)
        if ended and front is not None and front.done and front.logits is None:
            self._cache.move(len(self.decoding) + len(ended), len(self.decoding))
        return ended

    @property
    def _cache(self) -> KVCache:
        assert self.cache is not None  # _reserve has made it
        return self.cache

    def _reserve(self) -> None:
        """Room in the cache for all tokens of those that wait, but the last of each."""
        context = self.model.context_length
        needed = max(
            min(len(prompt.ids) + sequence.most - 1, context)
            for prompt in self.waiting.values()
            for sequence in prompt.sequences
        )
        if self.cache is None:
            self.cache = KVCache(self.model, self.slots, needed)
        self.cache.reserve(needed)

    @property
    def _kept(self) -> int:
        """How many tokens of a full context stay: its newer half."""
        return max(1, self.model.context_length // 2)

    def _slide(self, slot: int, sequence: Sequence) -> None:
        """Go on from the newer half of a full context, which is read again but for its last
        token."""
        text = np.concatenate([sequence.prompt, np.array(sequence.made, np.int64)])
        self._cache.truncate(0, slot)
        if len(kept := text[-self._kept : -1]):
            read(self.model, self._cache, [kept], slot)


def read(model: LanguageModel, cache: KVCache, tokens: Tokens, first: int) -> np.ndarray:
    """New tokens for the slots from `first` on -> logits (n, V) after the last of each."""
    counts = np.array([len(row) for row in tokens])
    ids = np.zeros((len(tokens), counts.max()), np.int64)
    for row, new in zip(ids, tokens, strict=True):
        row[: len(new)] = new
    view = cache.view(counts, first, first + len(tokens))
    return model.unembedding.logits(model.hidden(ids, view, last_only=True))


def _shown(sequences: list[Sequence]) -> np.ndarray:
    """(n, T): all tokens of each sequence, as processors see them: -1 at padding, which is on the
    left."""
    rows = [np.concatenate([s.shown, np.frombuffer(s.made, np.int64)]) for s in sequences]
    ids = np.full((len(rows), max(map(len, rows))), -1)
    for target, row in zip(ids, rows, strict=True):
        target[len(target) - len(row) :] = row
    return ids
