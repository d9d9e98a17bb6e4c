"""Preferences -> pairs of examples: a prompt with the chosen completion, and with the rejected one.

Where no prompt is given, or both completions are whole conversations, what both begin with is the
prompt: of messages those that are the same, of texts what is the same up to the end of a word.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from numgpt.data.examples import Example, ExampleEncoder
from numgpt.data.records import COMPLETION, PREFERENCE, Record


class PairEncoder(ExampleEncoder):
    """Records of preferences -> (chosen, rejected)."""

    learnt = ("chosen", "rejected")

    def examples(self, record: Record) -> tuple[Example, ...]:
        """Raises ValueError naming file and line for a record that is no preference, or whose two
        completions are the same."""
        if record.kind != PREFERENCE:
            raise ValueError(
                f"{record.place}: it has {record.kind}: preferences have the keys prompt, chosen"
                " and rejected"
            )
        fields = dict(record.fields)
        said = {name: fields.pop(name) for name in self.learnt}
        fields["prompt"] = _prompt(fields.get("prompt"), said, record.place)
        pair = (fields | {"completion": completion} for completion in said.values())
        replaced = (dataclasses.replace(record, kind=COMPLETION, fields=each) for each in pair)
        return tuple(map(self.encode, replaced))


def _prompt(given: Any, said: dict[str, Any], place: str) -> Any:
    """The prompt; what is said gets what follows it.  Raises ValueError for what is no pair."""
    chosen, rejected = said.values()
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise ValueError(f"{place}: of chosen and rejected one is a text, the other messages")
    if chosen == rejected:
        raise ValueError(
            f"{place}: chosen and rejected are the same: a preference needs two answers"
        )
    conversations = not isinstance(chosen, str) and chosen[0]["role"] != "assistant"
    if given is None or conversations:
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        if isinstance(chosen, str):  # the space before a word is the word's, as tokens have it
            while same and not chosen[same : same + 1].isspace():
                same -= 1
        given = chosen[:same]
        said |= {name: completion[same:] for name, completion in said.items()}
        if conversations and any(c and c[0]["role"] != "assistant" for c in said.values()):
            raise ValueError(
                f"{place}: chosen and rejected are not two answers to the same messages: they"
                " differ before the assistant's"
            )
    for name, completion in said.items():
        if not completion:
            raise ValueError(
                f"{place}: {name} is empty, or says no more than the other: a preference needs two"
                " answers"
            )
    return given
