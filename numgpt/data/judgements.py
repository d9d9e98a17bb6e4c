"""Judged completions -> examples: each after its own prompt, and that prompt with the completion of
another record, which shows what the policy makes of completions in general (objectives/kto.py).

The other is the record before; the first one's is the second. So the pairs are the same whenever a
run goes on, and what the reference makes of them can be computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from numgpt.data.examples import Example, ExampleEncoder
from numgpt.data.records import COMPLETION, JUDGED, Record
from numgpt.options import OptionError

OTHER = "other completion"  # a key that no record has by itself


class JudgedEncoder(ExampleEncoder):
    """Records with labels -> (the completion, another one after the same prompt)."""

    def arranged(self, records: Iterable[tuple[Record, bool]]) -> Iterator[tuple[Record, bool]]:
        """… with the completion of another. Raises ValueError for what has no label, OptionError
        where there is one record alone."""
        first = before = None
        for record, is_held_out in records:
            if record.kind != JUDGED:
                raise ValueError(
                    f"{record.place}: it has {record.kind}: completions that were judged have the"
                    ' keys prompt, completion and "label", true or false'
                )
            if before is None:
                first = record, is_held_out
            else:
                if first is not None:
                    yield _with(first[0], record), first[1]
                    first = None
                yield _with(record, before), is_held_out
            before = record
        if first is not None:
            raise OptionError("{data:name} has one completion: KTO compares each with others")

    def examples(self, record: Record) -> tuple[Example, ...]:
        fields = dict(record.fields)
        label, other = fields.pop("label"), fields.pop(OTHER)
        own = self.encode(dataclasses.replace(record, kind=COMPLETION, fields=fields))
        fields["completion"] = other.fields["completion"]
        # (What is wrong with it is said of its own line.)
        mismatched = self.encode(dataclasses.replace(other, kind=COMPLETION, fields=fields))
        return own._replace(desirable=label), mismatched


def _with(record: Record, other: Record) -> Record:
    return dataclasses.replace(record, fields=record.fields | {OTHER: other})
