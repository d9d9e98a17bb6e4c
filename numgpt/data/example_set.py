"""Examples on disk, and batches of them: of nearly equal length, in an order that a seed decides.

All examples lie one after another in one file of uint32, memory-mapped, so that a set may be larger
than memory. The highest bits of a token say whether the loss counts it, whether it begins an
example, whether that is held out, and whether it was judged undesirable.

Padding is told by its position: it comes after the end of an example, whatever its id, and is
neither counted nor, attention being causal, seen by anything that is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from numgpt.data.batch import IGNORED, Batch
from numgpt.data.corpus import TOKENS_FILE, TokensFile, hash_tokenizer, open_tokens
from numgpt.data.examples import Example, ExampleEncoder
from numgpt.data.records import Record
from numgpt.files import replacing
from numgpt.options import OptionError

DTYPE = np.dtype("<u4")
IN_LOSS, BEGINS, HELD_OUT = np.uint32(1 << 31), np.uint32(1 << 30), np.uint32(1 << 29)
UNDESIRABLE = np.uint32(1 << 28)
IDS = np.uint32((1 << 28) - 1)
WINDOW = 32  # batches whose examples are sorted by length together
JITTER = 1.25  # … by a length that is up to so many times the true one
SCANNED_AT_ONCE = 1 << 22  # tokens


@dataclass
class Counts:
    """What became of the records; tokens are those of the examples to train on."""

    trained: int = 0
    held_out: int = 0
    cut: int = 0  # from the left of the prompt
    dropped: int = 0  # too long
    counted: int = 0  # of them, those that the loss counts
    tokens: int = 0
    kind: str = ""
    origins: set[str] = field(default_factory=set)  # the keys that it is made of, if others

    def __str__(self) -> str:
        kept = f"{self.trained:,} example{'s' * (self.trained != 1)} of {self.kind}"
        if self.origins:
            kept += f" (made of {'; '.join(sorted(self.origins))})"
        if self.counted:  # of prompts alone, none are
            kept += f"; {self.counted:,} of {self.tokens:,} tokens are trained on"
        kept += f"; {self.held_out:,} more held out" if self.held_out else ""
        if self.cut:
            kept += f"; {self.cut:,} too long, cut from the left of the prompt"
        if self.dropped:
            kept += f"; {self.dropped:,} left out, too long even without a prompt"
        return kept


def encode_examples(
    records: Iterable[tuple[Record, bool]],
    encoder: ExampleEncoder,
    most: int,
    directory: str | os.PathLike,
    show: Callable[[Example, str], None] = lambda example, name: None,
) -> tuple[TokensFile, Counts]:
    """Write directory/tokens.bin.  records: each with whether it is held out; most: tokens of an
    example; `show` is called with each example that is trained on, as it was made, and its name.

    Raises ValueError for a record that is wrong, by file and line, and where there is nothing to
    train on.
    """
    counts, digest, written = Counts(), hashlib.sha256(), 0
    with replacing(Path(directory) / TOKENS_FILE) as file:
        for record, is_held_out in encoder.arranged(records):
            counts.kind = record.kind
            if record.origin:
                counts.origins.add(record.origin)
            whole = encoder.examples(record)
            examples = encoder.fit(whole, most)
            if examples is None:
                counts.dropped += 1
                continue
            counts.cut += len(examples[0].ids) < len(whole[0].ids)
            counts.held_out += is_held_out
            counts.trained += not is_held_out
            for place, example in enumerate(examples):
                learnt = place < len(encoder.learnt)
                if learnt:
                    show(example, encoder.learnt[place])
                packed = example.ids.astype(DTYPE) | example.loss_mask * IN_LOSS
                packed[0] |= BEGINS
                if not example.desirable:
                    packed |= UNDESIRABLE
                if is_held_out:
                    packed |= HELD_OUT
                elif learnt:
                    counts.tokens += len(packed)
                    counts.counted += int(np.count_nonzero(example.loss_mask[1:]))
                written += len(packed)
                file.write(packed.data)
                digest.update(packed.data)
    if not counts.trained:
        reason, number = "all {0} are held out, lower {val_fraction:name}", counts.held_out
        if counts.dropped:
            reason = "all {0} are too long for {max_length}, even without their prompts; raise it,"
            reason, number = f"{reason} or make them shorter", counts.dropped
        nothing = f"there are no examples to train on: {reason}"
        raise OptionError(nothing, number, max_length=most)
    hashes = digest.hexdigest(), hash_tokenizer(encoder.tokenizer)
    made_by = encoder.conversations, encoder.tokenizer.vocab_size
    return TokensFile(DTYPE.str, written, *hashes, *made_by), counts


class ExampleSet:
    """Examples on disk, those to train on and those held out; or groups of them, such as pairs,
    which have one number and stay together."""

    def __init__(self, directory: str | os.PathLike, tokens: TokensFile, group: int = 1):
        """Raises ValueError where directory/tokens.bin holds no examples, or no whole groups."""
        self.group = group
        self._tokens = open_tokens(directory, tokens)
        starts, held_out = [], []
        for first in range(0, len(self._tokens), SCANNED_AT_ONCE):
            part = self._tokens[first : first + SCANNED_AT_ONCE]
            begins = np.flatnonzero(part & BEGINS)
            starts.append(first + begins)
            held_out.append((part[begins] & HELD_OUT) > 0)
        self._starts = np.append(np.concatenate(starts), len(self._tokens))
        of = np.concatenate(held_out)[::group]
        self.train, self.val = np.flatnonzero(~of), np.flatnonzero(of)  # numbers of groups
        if not len(self.train) or self._starts[0] != 0 or (len(self._starts) - 1) % group:
            raise ValueError(f"{directory}: {TOKENS_FILE} holds no examples to train on")
        self._lengths = np.diff(self._starts[::group])  # in tokens, of groups

    def __len__(self) -> int:
        """How many groups there are, held out or not."""
        return len(self._lengths)

    def example(self, number: int, place: int = 0) -> Example:
        """That at a place of a group."""
        index = number * self.group + place
        packed = self._tokens[self._starts[index] : self._starts[index + 1]]
        ids, loss_mask = (packed & IDS).astype(np.int64), (packed & IN_LOSS) > 0
        return Example(ids, loss_mask, not packed[0] & UNDESIRABLE)

    def batches_in_epoch(self, batch_size: int) -> int:
        """How many batches take each example to train on once."""
        return -(-len(self.train) // batch_size)

    def batch(self, number: int, batch_size: int, seed: int) -> Batch:
        """The batch of this number, from the beginning of the first epoch."""
        return self.padded(self.numbers(number, batch_size, seed))

    def numbers(self, number: int, batch_size: int, seed: int) -> np.ndarray:
        """Those of the groups in a batch.

        Each epoch goes through all examples in an order of its own. Within WINDOW batches examples
        are sorted by length, nearly, so that little is padded and yet no two epochs make the same
        batches; the batches of a window are shuffled.
        """
        epoch, place = divmod(number, self.batches_in_epoch(batch_size))
        order = np.random.default_rng([seed, epoch]).permutation(self.train)
        window = place // WINDOW
        size = WINDOW * batch_size
        chosen = order[window * size : (window + 1) * size]
        rng = np.random.default_rng([seed, epoch, window])
        lengths = self._lengths[chosen]
        nearly = np.argsort(lengths * rng.uniform(1, JITTER, len(lengths)), kind="stable")
        batches = np.split(chosen[nearly], range(batch_size, len(chosen), batch_size))
        return batches[rng.permutation(len(batches))[place % WINDOW]]

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """All that is held out, the shortest first."""
        return self.in_order(self.val, batch_size)

    def in_order(self, numbers: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """These groups once, the shortest first."""
        order = numbers[np.argsort(self._lengths[numbers], kind="stable")]
        for start in range(0, len(order), batch_size):
            yield self.padded(order[start : start + batch_size])

    def padded(self, numbers: np.ndarray) -> Batch:
        """Groups side by side, first all their first examples, then all their second ones, …;
        padded on the right to the longest."""
        examples = [self.example(int(n), place) for place in range(self.group) for n in numbers]
        shape = (len(examples), max(len(example.ids) for example in examples) - 1)
        ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED)
        for row, example in enumerate(examples):
            length = len(example.ids) - 1
            ids[row, :length] = example.ids[:-1]
            targets[row, :length] = np.where(example.loss_mask[1:], example.ids[1:], IGNORED)
        return Batch(ids, targets, sum(len(e.ids) - 1 for e in examples), numbers)
