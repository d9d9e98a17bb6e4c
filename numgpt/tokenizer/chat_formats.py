"""The formats that ship: what a template writes whose text is exactly one that is known. Such a
template, a program in Jinja, is not run; every other one is (jinja_template.py).

    ChatML      <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎
    Llama 3     <|start_header_id|>user<|end_header_id|>⏎⏎Hi<|eot_id|>…
    plain       User: Hi⏎Assistant:     (of models that were never taught to chat)
    prompt      Hi                      (of models that were tuned on prompts with completions)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from numgpt.messages import shown
from numgpt.tokenizer.chat_programs import CHAT_TEMPLATES, PROMPT_TEMPLATES
from numgpt.tokenizer.traced import Traced, joined, of_message


@dataclass(frozen=True)
class ChatFormat:
    """How one kind of model writes conversations down."""

    name: str
    source: str  # a turn, with {role} and {content} in it
    begins: bool = False  # with bos_token; and white space around what is said is cut off
    default_system: str | None = None  # for a conversation that has none
    variables: ClassVar[frozenset[str]] = frozenset()  # none but a template's usual ones

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tokens: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> Traced:
        """The text of a conversation.  Raises ValueError for a message that it can't express."""
        parts: list[str] = [tokens.get("bos_token", "") if self.begins else ""]
        if self.default_system is not None and messages[0]["role"] != "system":
            parts.append(self.default_system.join(self._turn("system", 0)))
        for number, message in enumerate(messages):
            content = message.get("content")
            if not isinstance(content, str):
                raise ValueError(f"message {number} has no text as its content")
            before, after = self._turn(message["role"], number)
            content = content.strip() if self.begins else content
            parts += [before, Traced(content, of_message(number)), after]
        if add_generation_prompt:
            parts.append(self._turn("assistant", len(messages))[0].rstrip(" "))
        return joined(parts)

    def _turn(self, role: str, number: int) -> tuple[str, str]:
        """What is written before and after what somebody says."""
        turn = self.source
        if self.name == PLAIN.name:
            if role not in ("user", "assistant") and (role, number) != ("system", 0):
                expected = "user and assistant speak, and the system first or not at all"
                raise ValueError(f"message {number} has the role {shown(role)}: {expected}")
            role, turn = role.capitalize(), "{content}\n\n" if role == "system" else turn
        before, _, after = turn.replace("{role}", role).partition("{content}")
        return before, after


@dataclass(frozen=True)
class PromptFormat:
    """Each message is a prompt by itself; what was said before is no part of it."""

    source: str
    begins: bool  # with bos_token
    name: ClassVar[str] = "prompt"
    variables: ClassVar[frozenset[str]] = frozenset()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tokens: Mapping[str, str],
        variables: Mapping[str, Any],
    ) -> Traced:
        """The last prompt, and what answers it.  Raises ValueError for a system prompt, or another
        message that the model was never tuned on."""
        parts: list[str] = []
        for number, message in enumerate(messages):
            role, content = message["role"], message.get("content")
            if role not in ("user", "assistant") or not isinstance(content, str):
                raise ValueError(
                    f"message {number} is one of the {role}: the model was tuned on prompts with"
                    " completions alone"
                )
            said = Traced(content, of_message(number))
            if role == "user" or not parts:
                parts = [tokens.get("bos_token", "") if self.begins else "", said]
            else:
                parts.append(said)
            if role == "assistant":
                parts.append(tokens.get("eos_token", ""))
        return joined(parts)


NativeFormat = ChatFormat | PromptFormat

CHATML = ChatFormat("ChatML", "<|im_start|>{role}\n{content}<|im_end|>\n")
SMOLLM2 = replace(
    CHATML, default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
LLAMA3 = ChatFormat(
    "Llama 3", "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>", begins=True
)
PLAIN = ChatFormat("plain", "{role}: {content}\n")

# By the SHA-256 of a template: those that are published, and ours.
_KNOWN = {
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": CHATML,
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": SMOLLM2,
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": LLAMA3,
}


_OURS = {"chatml": CHATML, "llama3": LLAMA3, "plain": PLAIN}
# By a template's text.
_PROGRAMS: dict[str, NativeFormat] = {CHAT_TEMPLATES[name]: form for name, form in _OURS.items()}
_PROGRAMS |= {text: PromptFormat(text, begins) for begins, text in PROMPT_TEMPLATES.items()}


def name_of(chat_format: object) -> str:
    """The name among CHAT_TEMPLATES of a format that ships."""
    return next(name for name, form in _OURS.items() if form is chat_format)


def known_format(template: str) -> NativeFormat | None:
    """The format that a template writes, where its text is one that is known."""
    digest = hashlib.sha256(template.encode(errors="replace")).hexdigest()
    return _PROGRAMS.get(template, _KNOWN.get(digest))
