"""Conversations as the tokens that chat models were trained on.

A model comes with a template, a program in Jinja that writes its conversations down. It is never
run: it is looked at, to see which of the known formats it writes and which system prompt it puts
first where a conversation has none. That is safe with files from strangers, needs no other
library, and knows what a rendered text no longer tells: which words are the template's and which
are somebody's. Only the template's can be role markers or other special tokens; what people type
is ordinary text, even where it spells one.

    ChatML      <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎
    Llama 3     <|start_header_id|>user<|end_header_id|>⏎⏎Hi<|eot_id|>…
    Llama 2     <s>[INST] <<SYS>>⏎Be kind.⏎<</SYS>>⏎⏎Hi [/INST] Hello </s>…
    Zephyr      <|user|>⏎Hi</s>⏎<|assistant|>⏎
    plain       User: Hi⏎Assistant:     (of models that were never taught to chat)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numgpt.tokenizer.base import BaseTokenizer

ROLES = ("system", "user", "assistant")
ZERO_WIDTH_SPACE = "\u200b"


class Marker(str):
    """A special token of the template."""

    __slots__ = ()


# A conversation in parts: markers, ordinary text, and tokens as a model has made them.
Part = Marker | str | Sequence[int]


@dataclass(frozen=True)
class ChatFormat:
    """How one kind of model writes conversations down."""

    name: str
    sign: str  # what shows in a template that it writes this format
    markers: tuple[str, ...]  # what nobody but the template may write
    end_of_turn: str | None = None  # the special token that ends an answer; None: the text's end
    stop_strings: tuple[str, ...] = ()  # texts that end an answer, where no token does
    begins_with_space: bool = False  # an answer's first token brings the space before it


CHATML = ChatFormat("ChatML", "<|im_start|>", ("<|im_start|>", "<|im_end|>"), "<|im_end|>")
LLAMA3 = ChatFormat(
    "Llama 3",
    "<|start_header_id|>",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)
LLAMA2 = ChatFormat(
    "Llama 2", "[INST]", ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), begins_with_space=True
)
ZEPHYR = ChatFormat("Zephyr", "<|assistant|>", ("<|system|>", "<|user|>", "<|assistant|>"))
PLAIN = ChatFormat(
    "plain",
    "",
    ("\nSystem:", "\nUser:", "\nAssistant:"),
    stop_strings=("\nUser:",),
    begins_with_space=True,
)
FORMATS = (CHATML, LLAMA3, LLAMA2, ZEPHYR)


class ChatTemplate:
    """The chat format of a tokenizer, with what its template says beyond the format."""

    def __init__(self, tokenizer: BaseTokenizer):
        """Raises ValueError where the template writes none of the known formats."""
        self.tokenizer = tokenizer
        template = tokenizer.chat_template
        if template is None:  # then the special tokens tell
            signs = tokenizer.special_tokens
            known = [form for form in FORMATS if form.sign in signs]
            self.format = known[0] if known else PLAIN
        else:
            known = [form for form in FORMATS if form.sign in template]
            if not known:
                names = ", ".join(form.name for form in FORMATS)
                raise ValueError(
                    "the tokenizer's chat template writes none of the formats that numgpt knows"
                    f" ({names}): clear tokenizer.chat_template to chat in plain text"
                )
            self.format = known[0]
        template = template or ""
        self.default_system = _default_system(template)
        self.trims = self.format in (LLAMA2, LLAMA3) or re.search(r"\|\s*trim\b", template)
        self.begins = self.format in (LLAMA2, LLAMA3) or "bos_token" in template

    def end_ids(self) -> list[int]:
        """The special tokens that end an answer."""
        ends = {self.tokenizer.eos_token, self.format.end_of_turn}
        special = self.tokenizer.special_tokens
        return sorted(special[end] for end in ends if end in special)

    def parts(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> list[Part]:
        """A conversation in parts. With add_generation_prompt it ends where an answer begins.

        A message is {"role": …, "content": text}; an assistant's may have "ids" as well, the tokens
        that it was made of. Raises ValueError for a message that the format can't express.
        """
        messages = _checked(messages)
        if self.format is not LLAMA2 and self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        parts: list[Part] = []
        if self.begins and self.format is not LLAMA2:
            parts += self._token(self.tokenizer.bos_token)
        write = {CHATML: self._chatml, LLAMA3: self._llama3, LLAMA2: self._llama2}
        write |= {ZEPHYR: self._zephyr, PLAIN: self._plain}
        parts += write[self.format](messages, add_generation_prompt)
        return parts

    def ids(self, parts: Iterable[Part]) -> list[int]:
        """The tokens of a conversation in parts."""
        ids: list[int] = []
        for part in _joined(parts):
            if isinstance(part, Marker):
                ids.append(self.tokenizer.special_tokens[part])
            elif isinstance(part, str):
                ids.extend(self.tokenizer.encode(part))
            else:
                ids.extend(part)
        return ids

    def text(self, parts: Iterable[Part]) -> str:
        """The text of a conversation in parts, as the template would write it."""
        return "".join(
            part if isinstance(part, str) else self.tokenizer.decode(part) for part in parts
        )

    # --- the formats ---

    def _chatml(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        start, end = self._token("<|im_start|>"), self._token("<|im_end|>")
        parts: list[Part] = []
        for message in messages:
            parts += [*start, f"{message['role']}\n", self._content(message), *end, "\n"]
        return [*parts, *start, "assistant\n"] if ask else parts

    def _llama3(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        start, end = self._token("<|start_header_id|>"), self._token("<|end_header_id|>")
        parts: list[Part] = []
        for message in messages:
            parts += [*start, message["role"], *end, "\n\n", self._content(message)]
            parts += self._token("<|eot_id|>")
        return [*parts, *start, "assistant", *end, "\n\n"] if ask else parts

    def _llama2(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        system = ""
        if messages[0]["role"] == "system":
            system = f"<<SYS>>\n{self._content(messages[0])}\n<</SYS>>\n\n"
            messages = messages[1:]
        parts: list[Part] = []
        for number, message in enumerate(messages):
            if message["role"] != ("user", "assistant")[number % 2]:
                raise ValueError(
                    f"message {number} is the {message['role']}'s: in Llama 2's format user and"
                    " assistant take turns, the user first"
                )
            if message["role"] == "user":
                parts += self._token(self.tokenizer.bos_token)
                parts += ["[INST] ", system, self._content(message), " [/INST]"]
                system = ""
            else:
                made = "ids" in message  # such tokens begin with the space
                parts += ["" if made else " ", self._content(message), "" if made else " "]
                parts += self._token(self.tokenizer.eos_token)
        return parts

    def _zephyr(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        parts: list[Part] = []
        for message in messages:
            parts += [*self._token(f"<|{message['role']}|>"), "\n", self._content(message)]
            parts += [*self._token(self.tokenizer.eos_token), "\n"]
        return [*parts, *self._token("<|assistant|>"), "\n"] if ask else parts

    def _plain(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        parts: list[Part] = []
        for message in messages:
            if message["role"] == "system":
                parts += [self._content(message), "\n\n"]
                continue
            made = "ids" in message
            parts += [message["role"].capitalize(), ":" if made else ": "]
            parts += [self._content(message), "\n"]
        return [*parts, "Assistant:"] if ask else parts

    def _token(self, text: str | None) -> list[Part]:
        """A marker: a special token where the vocabulary has it as one, else its text."""
        if text is None:
            return []
        return [Marker(text) if text in self.tokenizer.special_tokens else text]

    def _content(self, message: Mapping[str, Any]) -> Part:
        """What somebody said. Where markers are mere text, those in it are broken in two by an
        invisible space, so that they mark nothing."""
        if "ids" in message:
            return message["ids"]
        content = message["content"].strip() if self.trims else message["content"]
        for marker in self.format.markers:
            if marker not in self.tokenizer.special_tokens:
                start = 2 if marker.startswith("\n") else 1
                content = content.replace(
                    marker, marker[:start] + ZERO_WIDTH_SPACE + marker[start:]
                )
        return content


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if isinstance(messages, (str, Mapping)) or not len(messages):
        raise ValueError('messages are a list of {"role": …, "content": …}, at least one')
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or (role == "system" and number > 0):
            place = " (the system speaks first or not at all)" if role == "system" else ""
            raise ValueError(
                f"message {number} has the role {role!r:.40}{place}: expected {', '.join(ROLES)}"
            )
        if "ids" not in message and not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} has no text as its content")
    return list(messages)


def _default_system(template: str) -> str | None:
    """The system prompt that a ChatML template writes into a conversation that has none."""
    # Literal text only: a quote or a brace would be where the template's own code goes on.
    match = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>", template)
    return match[1].replace("\\n", "\n") if match else None


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one: a tokenizer's pieces may reach over their border."""
    joined: list[Part] = []
    for part in parts:
        plain = isinstance(part, str) and not isinstance(part, Marker)
        before = joined[-1] if joined else None
        if plain and isinstance(before, str) and not isinstance(before, Marker):
            joined[-1] = before + part
        else:
            joined.append(part)
    return joined
