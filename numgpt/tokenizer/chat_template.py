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
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numgpt.messages import shown
from numgpt.tokenizer.base import check_unicode
from numgpt.tokenizer.chat_formats import (
    CHATML,
    FORMATS,
    LLAMA2,
    LLAMA3,
    PLAIN,
    ZEPHYR,
    default_system,
    is_written_by,
)

if TYPE_CHECKING:
    from numgpt.tokenizer.base import BaseTokenizer

ROLES = ("system", "user", "assistant")
ZERO_WIDTH_SPACE = "\u200b"
# What Llama 3.1 and later write before any system prompt, and the date where none is known.
_KNOWLEDGE = "Cutting Knowledge Date: December 2023\nToday Date: "
_UNKNOWN_DATE = "26 Jul 2024"
# Where a line begins, for anyone who reads it, and a few blanks.
_LINE_BEGINS = r"((?:^|[\r\v\f\x1c-\x1e\x85\u2028\u2029])[ \t]{0,20})"


class Marker(str):
    """A special token of the template."""

    __slots__ = ()


class MadeIds(tuple):
    """The tokens of an answer as a model has made them. A type of its own, so that nothing that is
    read from a file or sent by somebody can pass for them."""

    __slots__ = ()


# A conversation in parts.
Part = Marker | str | MadeIds


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
        elif not isinstance(template, str):
            raise ValueError(f"chat_template={shown(template)}: expected a text, or None")
        else:
            known = [form for form in FORMATS if form.sign in template]
            if not known or not is_written_by(template, known[0]):
                names = ", ".join(form.name for form in FORMATS)
                raise ValueError(
                    "the tokenizer's chat template writes none of the formats that numgpt knows"
                    f" ({names}): clear tokenizer.chat_template to chat in plain text"
                )
            self.format = known[0]
        template = template or ""
        self.default_system = default_system(template)
        self.knowledge = ""
        if self.format is LLAMA3 and _KNOWLEDGE.partition("\n")[0] in template:
            today = time.strftime("%d %b %Y") if "strftime_now" in template else _UNKNOWN_DATE
            self.knowledge = f"{_KNOWLEDGE}{today}\n\n"
        # Each message by itself; Llama 2 trims the system prompt and the question as one.
        self.trims = self.format is LLAMA3 or bool(re.search(r"\|\s*trim\b", template))
        self.begins = self.format in (LLAMA2, LLAMA3) or "bos_token" in template
        if self.format is PLAIN and not self._can_write("User: \nAssistant: "):
            raise ValueError(
                "the tokenizer lacks characters of the roles in a conversation (User:, Assistant:):"
                " this model continues text, it can't chat"
            )
        # What breaks a marker in two, in the models' eyes as well.
        self._breaker = ZERO_WIDTH_SPACE if self._can_write(ZERO_WIDTH_SPACE) else " "

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[BaseTokenizer]]:
        return ChatTemplate, (self.tokenizer,)  # formats are compared by identity

    def end_ids(self) -> list[int]:
        """The special tokens that end an answer: also a marker of the next turn, which is not the
        model's to begin."""
        ends = {self.tokenizer.eos_token, self.format.end_of_turn, *self.format.markers}
        special = self.tokenizer.special_tokens
        return sorted(special[end] for end in ends if end in special)

    def stop_strings(self) -> tuple[str, ...]:
        """The texts that end an answer where no special token does."""
        end = self.format.end_of_turn
        as_text = end is not None and end not in self.tokenizer.special_tokens
        return (*self.format.stop_strings, *((end,) if as_text else ()))

    def parts(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> list[Part]:
        """A conversation in parts. With add_generation_prompt it ends where an answer begins.

        A message is {"role": …, "content": text}; one that the model has made may have "ids" as
        well, its MadeIds. Raises ValueError for a message that the format can't express.
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

    def segments(
        self, messages: Sequence[Mapping[str, Any]], learnt: Sequence[bool]
    ) -> list[tuple[list[int], bool]]:
        """A conversation as runs of tokens, and whether a model is to learn them: of the messages
        that are marked, what the assistant says and what ends its turn.

        Each answer is tokenised by itself, as a model makes it after the prompt. Where no token
        ends a turn, the last one ends with that of the text.
        """
        before = " " if self.format.begins_with_space else ""
        after = " " if self.format is LLAMA2 else ""
        made = [
            {**message, "ids": self._answer_ids(before, message, after)}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]
        flags = iter([flag for flag, m in zip(learnt, made, strict=True) if _is_made(m)])
        runs: list[tuple[list[Part], bool]] = [([], False)]
        ending = False  # the part that follows an answer ends its turn
        for part in self.parts(made):
            is_answer = isinstance(part, MadeIds)
            flag = next(flags) if is_answer else ending and runs[-1][1]
            if flag != runs[-1][1]:
                runs.append(([], flag))
            runs[-1][0].append(part)
            ending = is_answer
        segments = [(self.ids(parts), flag) for parts, flag in runs if parts]
        last = self.tokenizer.eos_token_id
        if self.format is PLAIN and last is not None and segments and segments[-1][1]:
            segments[-1][0].append(last)
        return segments

    def _answer_ids(self, before: str, message: Mapping[str, Any], after: str) -> MadeIds:
        content = self._content({"role": message["role"], "content": message["content"]})
        return MadeIds(self.tokenizer.encode_ordinary(f"{before}{str(content).strip()}{after}"))

    def ids(self, parts: Iterable[Part]) -> list[int]:
        """The tokens of a conversation in parts."""
        ids: list[int] = []
        for part in _joined(parts):
            if isinstance(part, Marker):
                ids.append(self.tokenizer.special_tokens[part])
            elif isinstance(part, str):
                ids.extend(self.tokenizer.encode_ordinary(part))
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
        if self.knowledge and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        for message in messages:
            parts += [*start, message["role"], *end, "\n\n"]
            parts += [self.knowledge] if message["role"] == "system" else []
            parts += [self._content(message), *self._token("<|eot_id|>")]
        return [*parts, *start, "assistant", *end, "\n\n"] if ask else parts

    def _llama2(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[Part]:
        begin, end = self._token("[INST]"), self._token("[/INST]")
        system: list[Part] = []
        if messages[0]["role"] == "system":  # it is put before the first question, as its part
            system = [*self._token("<<SYS>>"), f"\n{self._content(messages[0])}\n"]
            system += self._token("<</SYS>>")
        first = 1 if system else 0
        parts: list[Part] = []
        for number, message in enumerate(messages[first:]):
            if message["role"] != ("user", "assistant")[number % 2]:
                raise ValueError(
                    f"message {first + number} is the {message['role']}'s: in Llama 2's format user"
                    " and assistant take turns, the user first"
                )
            if message["role"] == "user":
                parts += self._token(self.tokenizer.bos_token)
                content = self._content(message)
                content = f"\n\n{content}".rstrip() if system else str(content).strip()
                parts += [*begin, " ", *system, content, " ", *end]
                system = []
            else:
                content, made = self._content(message), _is_made(message)
                parts += (
                    [content] if made else [" ", str(content).strip(), " "]
                )  # made with the space
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
            parts += [message["role"].capitalize(), ":" if _is_made(message) else ": "]
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
        if _is_made(message):
            return message["ids"]
        content = message["content"].strip() if self.trims else message["content"]
        check_unicode(content)
        mere_text = [m for m in self.format.markers if m not in self.tokenizer.special_tokens]
        if mere_text and getattr(self.tokenizer, "lacks_bytes_of_text", False):
            # What the vocabulary leaves out can't hold a marker's halves apart.
            while (
                seen := self.tokenizer.decode(self.tokenizer.encode_ordinary(content))
            ) != content:
                content = seen
        plain = self.format is PLAIN
        for marker in mere_text:
            content = re.sub(
                (_LINE_BEGINS if plain else "()")
                + f"({re.escape(marker[0])})({re.escape(marker[1:])})",
                rf"\g<1>\g<2>{self._breaker}\g<3>",
                content,
                flags=re.MULTILINE | re.IGNORECASE if plain else 0,
            )
        return content

    def _can_write(self, text: str) -> bool:
        """Whether the vocabulary has all of a text."""
        try:
            return self.tokenizer.decode(self.tokenizer.encode_ordinary(text)) == text
        except ValueError:
            return False


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError('messages are a list of {"role": …, "content": …}, at least one')
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or (role == "system" and number > 0):
            place = " (the system speaks first or not at all)" if role == "system" else ""
            raise ValueError(
                f"message {number} has the role {shown(role)}{place}: expected {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} has no text as its content")
    return list(messages)


def _is_made(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("ids"), MadeIds)


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one: a tokenizer's pieces may reach over their border."""
    joined: list[Part] = []
    for part in parts:
        plain = isinstance(part, str) and not isinstance(part, Marker)
        before = joined[-1] if joined else None
        if plain and isinstance(before, str) and not isinstance(before, Marker):
            joined[-1] = before + str(part)
        else:
            joined.append(part)
    return joined
