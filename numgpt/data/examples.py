"""Examples -> tokens and a loss mask: answers are trained on, and nothing that was asked.

Of prompt and completion, each is tokenised by itself, so that no token reaches over their border;
the completion is trained on, and the end of the text. Of a conversation, what the assistant says
is, and the token that ends its turn (tokenizer/chat_template.py); of a text alone, all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numgpt.data.records import COMPLETION, MESSAGES, PROMPT, TEXT, Record
from numgpt.messages import shown
from numgpt.options import AboutOptions, OptionError
from numgpt.tokenizer import BaseTokenizer
from numgpt.tokenizer.chat_template import ChatTemplate


class Example(NamedTuple):
    """Tokens, and which of them are trained on."""

    ids: np.ndarray  # (n,) int64
    loss_mask: np.ndarray  # (n,) bool: these are targets, the others only read
    desirable: bool = True  # what a completion was judged to be


class ExampleEncoder:
    """Records -> examples, by one tokenizer and its chat format."""

    # What of a record is trained on, by names where these tell something.
    learnt: ClassVar[tuple[str, ...]] = ("",)

    def __init__(self, tokenizer: BaseTokenizer, variables: Mapping[str, Any] | None = None):
        """variables are handed to the chat template."""
        self.tokenizer, self.variables = tokenizer, variables
        self.conversations = False  # whether any was among the records
        self._template: ChatTemplate | None = None

    @property
    def template(self) -> ChatTemplate:
        """Raises ValueError where the tokenizer's template can't be rendered."""
        if self._template is None:
            try:
                self._template = ChatTemplate(self.tokenizer, self.variables)
            except ValueError as error:
                raise OptionError("{0}, or choose another {chat_format:name}", error) from None
            if unused := self._template.unused_variables:
                raise OptionError(
                    "{chat_var}: the chat template does not use it", chat_var=unused[0]
                )
        return self._template

    def arranged(self, records: Iterable[tuple[Record, bool]]) -> Iterable[tuple[Record, bool]]:
        """The records as `examples` wants them, each with whether it is held out."""
        return records

    def fit(self, examples: tuple[Example, ...], most: int) -> tuple[Example, ...] | None:
        """What is made of a record, of at most so many tokens each; None where it can't be."""
        return fit(examples, most)

    def examples(self, record: Record) -> tuple[Example, ...]:
        """What is made of a record: one example, or several that belong together."""
        return (self.encode(record),)

    def encode(self, record: Record) -> Example:
        """Raises ValueError naming file and line for a record with nothing to learn, or that the
        chat format can't express."""
        try:
            ids, loss_mask = self._tokens(record)
        except AboutOptions as error:
            raise error.after(record.place) from None
        except ValueError as error:
            raise ValueError(f"{record.place}: {error}") from None
        if self.learnt and not any(loss_mask[1:]):  # nothing predicts a first token
            raise ValueError(
                f"{record.place}: nothing in it is trained on: it needs a message of the"
                " assistant (with a weight other than 0), a completion, or a text of two tokens"
            )
        return Example(np.array(ids, np.int64), np.array(loss_mask, bool))

    def answered(self, prompt: str | list[dict[str, Any]], answer: str) -> list[int]:
        """The tokens of a prompt and an answer to it, which may be empty, as `encode` has them.
        Raises ValueError for what the chat format can't express."""
        if isinstance(prompt, str):
            return self._continued(prompt, answer)[0]
        said = [{"role": "assistant", "content": answer}]
        return self._conversation(prompt, said, None, may_be_empty=True)[0]

    def _continued(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        given = list(self.tokenizer.encode(prompt, add_special_tokens=True))
        answer = list(self.tokenizer.encode(completion, continues=bool(given))) + self._end()
        return given + answer, [False] * len(given) + [True] * len(answer)

    def _tokens(self, record: Record) -> tuple[list[int], list[bool]]:
        fields = record.fields
        if record.kind == MESSAGES:
            return self._conversation([], fields["messages"], fields.get("tools"))
        if record.kind == COMPLETION:
            prompt, completion = fields["prompt"], fields["completion"]
            if not (isinstance(prompt, str) and isinstance(completion, str)):
                asked, said = _as_messages(prompt, "user"), _answers(completion)
                return self._conversation(asked, said, fields.get("tools"))
            if not completion:
                raise ValueError(
                    "the completion is empty: write the answer there, or take the line out"
                )
            return self._continued(prompt, completion)
        if record.kind == TEXT:
            text = list(self.tokenizer.encode(fields["text"], add_special_tokens=True))
            text += self._end()
            return text, [True] * len(text)
        if record.kind == PROMPT:
            keys = f"a prompt and {shown(sorted(fields.keys() - {'prompt'}))}"
            keys = "a prompt alone" if fields.keys() <= {"prompt"} else keys
            raise ValueError(f"it has {keys}: the answer's key is 'completion'")
        raise ValueError(
            f"it has {record.kind}: supervised tuning learns from text, prompt and completion, or"
            " messages"
        )

    def _conversation(
        self,
        asked: list[dict[str, Any]],
        said: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        may_be_empty: bool = False,
    ) -> tuple[list[int], list[bool]]:
        """Of the messages that were said, the assistant's are trained on, but for those of weight
        0; of those asked, none."""
        for message in () if may_be_empty else said:
            calls = message.get("tool_calls")
            if message["role"] == "assistant" and not (calls or message["content"].strip()):
                raise ValueError(
                    "an answer of the assistant is empty: write it there, or take the line out"
                )
        self.conversations = True
        trained = [False] * len(asked)
        trained += [m["role"] == "assistant" and m.get("weight") != 0 for m in said]
        messages = without_weights([*asked, *said])
        try:
            ids, loss_mask = self.template.examples(messages, trained, tools)
        except ValueError as error:
            if all(message["role"] != "system" for message in messages[1:]):
                raise
            raise ValueError(f"{error}: write what it says later as the user's") from None
        if any(trained) and not any(loss_mask[1:]):  # a template of prompts alone
            raise ValueError(
                "the model was tuned on texts, and its chat template does not write conversations:"
                " give prompt and answers as texts"
            )
        return ids, loss_mask

    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]


def without_weights(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a chat template has them."""
    return [{n: v for n, v in message.items() if n != "weight"} for message in messages]


def fit(examples: tuple[Example, ...], most: int) -> tuple[Example, ...] | None:
    """Examples of at most so many tokens, all cut alike from the left of what comes before the
    first token that is trained on; None where what is trained on is too long by itself."""
    surplus = max(len(example.ids) for example in examples) - most
    if surplus <= 0:
        return examples
    first = min(int(np.argmax(example.loss_mask)) for example in examples)
    if surplus > first - 1:  # something has to predict the first target
        return None
    return tuple(e._replace(ids=e.ids[surplus:], loss_mask=e.loss_mask[surplus:]) for e in examples)


def last_answer(example: Example, ends: Collection[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """What comes before the last answer that is trained on, and the answer; None where nothing
    comes before it.  What is an end by itself (of the text, after the answer's own) is none."""
    edges = np.flatnonzero(np.diff(example.loss_mask, prepend=False, append=False)).reshape(-1, 2)
    for start, stop in edges[::-1].tolist():
        if not set(example.ids[start:stop].tolist()) <= set(ends):
            return (example.ids[:start], example.ids[start:stop]) if start else None
    return None


def marked(example: Example, tokenizer: BaseTokenizer) -> str:
    """The text of an example, what is trained on between «…»."""
    edges = np.flatnonzero(np.diff(example.loss_mask, prepend=False))
    pieces = [tokenizer.decode(piece) for piece in np.split(example.ids, edges)]
    pieces[1::2] = [f"«{piece}»" for piece in pieces[1::2]]  # every second one is trained on
    return "".join(pieces)


def _as_messages(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _answers(completion: Any) -> list[dict[str, Any]]:
    messages = _as_messages(completion, "assistant")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("the completion has no message of the assistant: it is what is trained on")
    return messages
