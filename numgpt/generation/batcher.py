"""Sequences that decode together: logits → processors → token → again.

Each sequence has a slot of one KV cache, and goes its own way there: with options, a generator and
an end of its own, so that its text does not depend on its neighbours. One that ends leaves its slot
to one that waits. Prompts are read whole, several at once, while nothing else is going on; while
others decode, at most CHUNK of their tokens a step, so that nobody waits for long.
"""

from __future__ import annotations

import itertools
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
from numgpt.models.language_model import Ids, LanguageModel
from numgpt.options import OptionError

Tokens = Collection[np.ndarray | array]
CHUNK = 64  # tokens of prompts, in a step in which others decode


class Sequence:
    """A prompt and its continuation, as it grows."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: Ids,
        options: GenerationOptions,
        rng: np.random.Generator | None = None,
        seen: np.ndarray | None = None,
    ):
        """prompt (n,); rng is for sampling; seen is the prompt as processors see it, -1 at padding,
        which max_length and min_length count.  Raises ValueError for what is invalid."""
        options.validate(model.config.vocab_size)
        (self.prompt,) = model.check_ids(prompt, any_length=options.slide)
        self.options, self.rng = options, rng
        self.seen = self.prompt if seen is None else seen
        self.eos_token_ids, self.pad_token_id = eos_and_pad(model, options)
        self.least, self.most = options.limits(len(self.seen))  # new tokens
        # How many the context leaves room for:
        self.room = math.inf if options.slide else model.context_length - len(self.prompt)
        self.made = array("q")  # the new tokens
        # Of each new token, with return_dict_in_generate: its log-probability by the model's own
        # distribution, and by the one that it was chosen from.
        self.logprobs: list[float] = []
        self.sampled_logprobs: list[float] = []
        self.scores: list[np.ndarray] = []  # (V,) each, after all processors (output_scores)
        self.logits: list[np.ndarray] = []  # (V,) each, the model's own (output_logits)
        self.beam_score: float | None = None  # of a beam: log P / length ** length_penalty
        # "stop" (by a token or a text), "length", "context" (full), "cancelled" or "error"
        self.finish_reason: str | None = None
        self.error: Exception | None = None  # of its processors
        self._processing = options.processing(), tuple(self.eos_token_ids), self.pad_token_id
        self.check_end()

    @property
    def processing(self) -> tuple:
        """Sequences for which this is equal are processed together.  A caller's own processors see
        all their tokens, so these have equally many, and no padding that others bring."""
        length = len(self.seen) + len(self.made) if self.options.logits_processor else None
        return self._processing, length

    def take(self, token: int, logits: np.ndarray, processed: np.ndarray) -> None:
        """Grow by a token, chosen by processed (V,), which is made of the model's logits (V,)."""
        self.made.append(token)
        if self.options.return_dict_in_generate:
            self.logprobs.append(float(log_softmax(logits)[token]))
            self.sampled_logprobs.append(float(log_softmax(processed)[token]))
        if self.options.output_scores:
            self.scores.append(processed.copy())
        if self.options.output_logits:
            self.logits.append(logits.copy())
        self.check_end()

    def check_end(self) -> None:
        """Set finish_reason where what was made ends the sequence."""
        if self.made and ends_with(self.made, self.eos_token_ids, self.options):
            self.finish_reason = "stop"
        elif len(self.made) >= self.most:
            self.finish_reason = "length"
        elif len(self.made) >= self.room:
            self.finish_reason = "context"


class Prompt:
    """What the sequences that continue it share: it is read once."""

    def __init__(self, ids: np.ndarray, done: int):
        self.ids = ids
        self.done = done  # tokens that are in its slot
        self.sequences: deque[Sequence] = deque()  # which wait
        self.logits: np.ndarray | None = None  # (V,) after it, once it has been read
        self.cache: KVCache | None = None  # it alone, where more wait than slots are free


class Batcher:
    """Sequences in the slots of one KV cache.

    >>> import numgpt
    >>> model = numgpt.GPT(numgpt.GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=9), seed=0)
    >>> batcher = Batcher(model, slots=2)
    >>> options = GenerationOptions(max_new_tokens=3)
    >>> sequences = [batcher.add(prompt, options) for prompt in ([1], [2, 3], [1])]
    >>> while batcher.busy:
    ...     for ended in batcher.step():
    ...         assert ended.finish_reason == "length"
    >>> sequences[0].made == sequences[2].made
    True
    """

    def __init__(self, model: LanguageModel, slots: int, cache: KVCache | None = None):
        """`cache` is one of `slots` slots to use; it grows where it has to."""
        if slots < 1:
            raise OptionError("{slots}: expected a whole number from 1 up", slots=slots)
        self.model, self.slots = model, slots
        self.cache = KVCache(model, slots, 1) if cache is None else cache
        self.decoding: list[Sequence] = []  # the one in slot 0, in slot 1, …
        self.waiting: dict[bytes, Prompt] = {}  # by its ids, in the order in which they came
        self._kept = max(1, model.context_length // 2)  # of a full context: its newer half

    @property
    def busy(self) -> bool:
        """Whether there is something left to do."""
        return bool(self.waiting or self.decoding)

    def add(
        self,
        prompt: Ids,
        options: GenerationOptions,
        rng: np.random.Generator | None = None,
        seen: np.ndarray | None = None,
        done: int = 0,
    ) -> Sequence:
        """Have a prompt (n,) continued, as soon as a slot is free: see Sequence.

        The options are those of `generate`; a generator for sampling is made of their seed where
        none is given. Of the first prompt, slot 0 of the cache may hold the first `done` tokens. A
        prompt that fills the context has ended already: see its finish_reason. Raises ValueError
        for what is invalid.
        """
        if options.num_beams != 1:
            raise OptionError.of(options, "{num_beams}: beams decode by themselves, in generate")
        if options.do_sample and rng is None:
            rng = np.random.default_rng(options.seed)
        sequence = Sequence(self.model, prompt, options, rng, seen)
        if sequence.finish_reason is None:
            ids, context = sequence.prompt, self.model.context_length
            ids = ids if len(ids) <= context else ids[-self._kept :]
            waiting = self.waiting.setdefault(ids.tobytes(), Prompt(ids, done))
            waiting.sequences.append(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """A token more for each sequence that decodes -> those that have ended with it."""
        parts = [self._read_newest()]
        parts += self._join()  # of the sequences that decode from here on, at the end of the list
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)  # (n, V)
        for group, own, processed in self._processed(logits):
            levels = [one.rng.random() for one in group if one.rng is not None]
            tokens = choose(processed, np.array(levels) if levels else None)
            for sequence, token, z, p in zip(group, tokens.tolist(), own, processed, strict=True):
                sequence.take(token, z, p)
        return self._leave()

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence here, between two steps; its slot is free from now on."""
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
            if self.cache.lengths[slot] == self.model.context_length:
                self._slide(slot, sequence)
        return read(self.model, self.cache, [s.made[-1:] for s in self.decoding], 0)

    def _processed(
        self, logits: np.ndarray
    ) -> Iterator[tuple[list[Sequence], np.ndarray, np.ndarray]]:
        """Sequences of equal options, their logits (k, V), and what processors make of these.  What
        is wrong with one sequence ends that one alone."""
        of_equal: dict[tuple, list[int]] = {}
        for row, sequence in enumerate(self.decoding):
            of_equal.setdefault(sequence.processing, []).append(row)
        groups = [*of_equal.values()]
        for rows in groups:
            group = [self.decoding[row] for row in rows]
            own = logits if len(rows) == len(logits) else logits[rows]
            first, may_end = group[0], np.array([len(one.made) >= one.least for one in group])
            ends, pad = first.eos_token_ids, first.pad_token_id
            try:
                made = process_logits(own, _seen(group), first.options, ends, may_end, pad)
            except Exception as error:  # whatever a caller's own processor raises
                if len(rows) == 1:
                    first.finish_reason, first.error = "error", error
                else:
                    groups += [[row] for row in rows]
            else:
                yield group, own, made

    # --- prompts, and who is in which slot ---

    def _join(self) -> Iterator[np.ndarray]:
        """Read prompts as far as slots are free, and put the sequences that continue them after
        those that decode; yields the logits (k, V) after the prompts of each k sequences."""
        alone, room = not self.decoding, CHUNK
        while room > 0 and self.waiting and len(self.decoding) < self.slots:
            first = len(self.decoding)
            prompts = [*itertools.islice(self.waiting.values(), self.slots - first)]
            if not alone or prompts[0].done:  # several in one pass only from their beginning
                prompts = prompts[:1]
            self._reserve(prompts)
            for slot, prompt in enumerate(prompts, first):
                self.cache.truncate(prompt.done, slot)
            if (kept := prompts[0].cache) is not None:
                self.cache.move(0, first, kept)
            if prompts[0].logits is None:
                parts = [p.ids[p.done :] if alone else p.ids[p.done :][:room] for p in prompts]
                logits = read(self.model, self.cache, parts, first)
                room -= 0 if alone else len(parts[0])
                for prompt, part, row in zip(prompts, parts, logits, strict=True):
                    prompt.done += len(part)
                    prompt.logits = row if prompt.done == len(prompt.ids) else None
            if prompts[0].logits is not None:
                yield self._seat(prompts, first)

    def _seat(self, prompts: list[Prompt], first: int) -> np.ndarray:
        """Give free slots to the sequences that continue prompts, which are in the slots from
        `first` on -> the logits (k, V) after them."""
        sources: list[int] = []  # of each sequence, the place of its prompt
        for place, prompt in enumerate(prompts):
            later = len(prompts) - 1 - place  # prompts, for each of which a slot stays free
            while prompt.sequences and len(sources) < self.slots - first - later:
                self.decoding.append(prompt.sequences.popleft())
                sources.append(place)
            if not prompt.sequences:
                del self.waiting[prompt.ids.tobytes()]
            elif prompt.cache is None:
                prompt.cache = self.cache.selected([first + place])
        # From the last on: a prompt's own slot comes after all that are copied from it.
        for place in reversed(range(len(sources))):
            if sources[place] != place:
                self.cache.move(first + sources[place], first + place)
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
                self.cache.move(len(self.decoding), slot)
                self.decoding[slot] = last
        front = next(iter(self.waiting.values()), None)
        if ended and front is not None and front.done and front.logits is None:
            self.cache.move(len(self.decoding) + len(ended), len(self.decoding))
        return ended

    def _reserve(self, prompts: list[Prompt]) -> None:
        """Room in the cache for all tokens of the sequences that continue these prompts, but the
        last of each."""
        needed = max(
            min(len(prompt.ids) + sequence.most - 1, self.model.context_length)
            for prompt in prompts
            for sequence in prompt.sequences
        )
        self.cache.reserve(needed)

    def _slide(self, slot: int, sequence: Sequence) -> None:
        """Go on from the newer half of a full context, which is read again but for its last
        token."""
        text = np.concatenate([sequence.prompt, np.array(sequence.made, np.int64)])
        self.cache.truncate(0, slot)
        if len(kept := text[-self._kept : -1]):
            read(self.model, self.cache, [kept], slot)


def read(model: LanguageModel, cache: KVCache, tokens: Tokens, first: int) -> np.ndarray:
    """New tokens for the slots from `first` on -> logits (n, V) after the last of each."""
    counts = np.array([len(row) for row in tokens])
    ids = np.zeros((len(tokens), counts.max()), np.int64)
    for row, new in zip(ids, tokens, strict=True):
        row[: len(new)] = new
    view = cache.view(counts, first, first + len(tokens))
    return model.unembedding.logits(model.hidden(ids, view, last_only=True))


def _seen(sequences: list[Sequence]) -> np.ndarray:
    """(n, T): all tokens of each sequence, as processors see them: -1 at padding, which is on the
    left."""
    rows = [np.concatenate([s.seen, np.frombuffer(s.made, np.int64)]) for s in sequences]
    ids = np.full((len(rows), max(map(len, rows))), -1)
    for target, row in zip(ids, rows, strict=True):
        target[len(target) - len(row) :] = row
    return ids
