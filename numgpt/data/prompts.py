"""Prompts -> examples without an answer: what a policy continues, and is then rewarded for.

What a line has beside its prompt ("answer", …) is for the reward: all of it is kept beside the
tokens, one JSON object a prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numgpt.data.corpus import TokensFile
from numgpt.data.examples import Example, ExampleEncoder, without_weights
from numgpt.data.finding import PROMPTS_FILE
from numgpt.data.records import COMPLETION, PROMPT, Record
from numgpt.files import replacing
from numgpt.reading import naming
from numgpt.tokenizer import BaseTokenizer


class PromptEncoder(ExampleEncoder):
    """Records with a prompt -> its tokens, none of them trained on."""

    learnt = ()

    def __init__(self, tokenizer: BaseTokenizer, variables: Mapping[str, Any] | None = None):
        super().__init__(tokenizer, variables)
        self.kept: list[dict[str, Any]] = []  # the fields of those that were encoded

    def _tokens(self, record: Record) -> tuple[list[int], list[bool]]:
        """Raises ValueError for a record without a prompt to continue."""
        if record.kind not in (PROMPT, COMPLETION):
            raise ValueError(
                f"it has {record.kind}: what is to be continued has the key prompt, and others for"
                " the reward"
            )
        ids = self.ids(record.fields["prompt"], record.fields.get("tools"))
        self.kept.append(record.fields)
        return ids, [False] * len(ids)

    def ids(
        self, prompt: str | list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """The tokens of a prompt: a text, or messages, after which an answer begins.  Raises
        ValueError for one that is empty, or that the chat format can't express."""
        if isinstance(prompt, str):
            ids = list(self.tokenizer.encode(prompt, add_special_tokens=True))
        else:
            if prompt[-1]["role"] == "assistant":
                raise ValueError("its prompt ends with the assistant's message: leave that out")
            self.conversations = True
            ids = self.template.ids(without_weights(prompt), True, tools)
        if not ids:
            raise ValueError("its prompt is empty: there is nothing to continue")
        return ids

    def fit(self, examples: tuple[Example, ...], most: int) -> tuple[Example, ...]:
        """What is too long is cut from the left."""
        return tuple(Example(e.ids[-most:], e.loss_mask[-most:]) for e in examples)


def write_prompts(
    directory: Path, prompts: list[dict[str, Any]], tokens: TokensFile, base: str
) -> None:
    """directory/prompts.jsonl: of which tokens they are, and of which model; then a prompt with its
    fields a line."""
    lines = b"".join(json.dumps(prompt).encode() + b"\n" for prompt in prompts)
    head = {"tokens": tokens.sha256, "base": base, "sha256": hashlib.sha256(lines).hexdigest()}
    with replacing(directory / PROMPTS_FILE) as file:
        file.write(json.dumps(head).encode() + b"\n" + lines)


def read_prompts(
    directory: Path, count: int, tokens: TokensFile
) -> tuple[list[dict[str, Any]], str]:
    """The prompts, and which model the run began with.  Raises FileNotFoundError or ValueError
    where the file is missing, damaged, or of other tokens."""
    path = directory / PROMPTS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, which holds what the run is rewarded for: put a copy of it back,"
            " or start a new run"
        )
    try:
        with naming(path):
            first, _, lines = path.read_bytes().partition(b"\n")
        head = json.loads(first)
        base, prompts = str(head["base"]), [*map(json.loads, lines.splitlines())]
        right = head["tokens"] == tokens.sha256 and len(prompts) == count
        right &= head["sha256"] == hashlib.sha256(lines).hexdigest()
        right &= all(isinstance(prompt, dict) and "prompt" in prompt for prompt in prompts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): put a copy of it back") from None
    if not right:
        raise ValueError(f"{path} is not of the prompts that the run began with: put that one back")
    return prompts, base
