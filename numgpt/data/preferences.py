"""Preferences -> pairs of examples: a prompt with the chosen completion, and with the rejected one.

Where no prompt is given, what both begin with is it: of messages those that are the same, of texts
what is the same up to a border of words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from numgpt.data.examples import Example, ExampleEncoder
from numgpt.data.records import COMPLETION, PREFERENCE, Record


class PairEncoder(ExampleEncoder):
    """Records of preferences -> (chosen, rejected)."""

    def examples(self, record: Record) -> tuple[Example, ...]:
        """Raises ValueError naming file and line for a record that is no preference, or whose two
        completions are the same."""
        if record.kind != PREFERENCE:
            raise ValueError(
                f"{record.place}: it has {record.kind}: preferences have the keys prompt, chosen"
                " and rejected"
            )
        fields = dict(record.fields)
        prompt, chosen, rejected = _parts(fields, record.place)
        pair = [
            self.encode(_completion(record, fields, prompt, said, name))
            for name, said in (("chosen", chosen), ("rejected", rejected))
        ]
        if np.array_equal(pair[0].ids, pair[1].ids):
            raise ValueError(
                f"{record.place}: chosen and rejected are the same: a preference needs two answers"
            )
        return tuple(pair)


def _completion(
    record: Record, fields: dict[str, Any], prompt: Any, said: Any, name: str
) -> Record:
    others = {n: v for n, v in fields.items() if n not in ("prompt", "chosen", "rejected")}
    return dataclasses.replace(
        record, kind=COMPLETION, fields=others | {"prompt": prompt, "completion": said}
    )


def _parts(fields: dict[str, Any], place: str) -> tuple[Any, Any, Any]:
    """Prompt, chosen, rejected; each a text, or a list of messages."""
    chosen, rejected = fields["chosen"], fields["rejected"]
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise ValueError(f"{place}: of chosen and rejected one is a text, the other messages")
    if "prompt" in fields:
        return fields["prompt"], chosen, rejected
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if isinstance(chosen, str):
        while same and not chosen[same - 1].isspace():
            same -= 1
    return chosen[:same], chosen[same:], rejected[same:]
