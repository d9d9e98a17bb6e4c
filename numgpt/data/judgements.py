"""Judged completions -> examples: each after its own prompt, and that prompt with the completion of
another record, which shows what the policy makes of completions in general (objectives/kto.py).

The other is the nearest one before that has another prompt; of the records that have none, it is
the first one after them. So the pairs are the same whenever a run goes on, and what the reference
makes of them can be computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from numgpt.data.examples import Example, ExampleEncoder, fit
from numgpt.data.records import COMPLETION, JUDGED, Record
from numgpt.options import OptionError

OTHER = "other record"  # a key that no record has by itself


class JudgedEncoder(ExampleEncoder):
    """Records with labels -> (the completion, another one after the same prompt)."""

    def arranged(self, records: Iterable[tuple[Record, bool]]) -> Iterator[tuple[Record, bool]]:
        """… with the record of another. Raises ValueError for what has no label, OptionError where
        all have one prompt."""
        waiting, before, other = list[tuple[Record, bool]](), None, None
        for record, is_held_out in records:
            if record.kind != JUDGED:
                raise ValueError(
                    f"{record.place}: it has {record.kind}: completions that were judged have the"
                    ' keys prompt, completion and "label", true or false'
                )
            if before is not None and before.fields["prompt"] != record.fields["prompt"]:
                other = before
                yield from ((_with(first, record), held) for first, held in waiting)
                waiting.clear()
            before = record
            if other is None:
                waiting.append((record, is_held_out))
            else:
                yield _with(record, other), is_held_out
        if waiting:
            raise OptionError(
                "{data:name} has completions of one prompt alone: KTO compares each with others"
            )

    def examples(self, record: Record) -> tuple[Example, ...]:
        fields = dict(record.fields)
        label, other = fields.pop("label"), fields.pop(OTHER)
        own = self.encode(dataclasses.replace(record, kind=COMPLETION, fields=fields))
        fields["completion"] = other.fields["completion"]
        # (What is wrong with it is said of its own line.)
        mismatched = self.encode(dataclasses.replace(other, kind=COMPLETION, fields=fields))
        return own._replace(desirable=label), mismatched

    def fit(self, examples: tuple[Example, ...], most: int) -> tuple[Example, ...] | None:
        """The completion decides; the other one is cut at its end where it is too long."""
        own, (ids, loss_mask, _) = fit(examples[:1], most), examples[1]
        start = max(0, min(int(np.argmax(loss_mask)) - 1, len(ids) - most))
        piece = slice(start, start + most)
        return None if own is None else (*own, Example(ids[piece], loss_mask[piece]))


def _with(record: Record, other: Record) -> Record:
    return dataclasses.replace(record, fields=record.fields | {OTHER: other})
