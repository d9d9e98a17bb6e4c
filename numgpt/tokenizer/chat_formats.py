"""The formats of conversations that are known, and the signs by which a template shows its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Literal text only, in a string of the template or outside of its code: a brace, or the quote that
# ends the string, would be where the code goes on. No part of a pattern can take what the next one
# may, so that no template takes long.
_DEFAULT_SYSTEM = (
    re.compile(
        r"""(?P<quote>["'])(?:[^"'{}<]|<(?!\|im_))*<\|im_start\|>system(?:\\n|\n)"""
        r"""(?P<text>(?:\\.|(?!(?P=quote)|<\|im_)[^\\])+)<\|im_end\|>"""
    ),
    re.compile(r"""<\|im_start\|>system(?:\\n|\n)(?P<text>[^'"{}<]+)<\|im_end\|>"""),
    re.compile(
        r"""set (?:default_)?system_message = (?P<quote>["'])(?P<text>[^'"{}<]+)(?P=quote)"""
    ),
)
# In a ChatML template a line ends after each turn; between the two only code that puts them
# together.
_CHATML_END = re.compile(r"""<\|im_end\|>[ '"+{}\-]{0,12}(?:\\n|\n)""")
_ESCAPES = {"n": "\n", "t": "\t"}


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
LLAMA2 = ChatFormat(  # others write [INST] too, with other spaces
    "Llama 2", "<<SYS>>", ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), begins_with_space=True
)
ZEPHYR = ChatFormat("Zephyr", "<|assistant|>", ("<|system|>", "<|user|>", "<|assistant|>"))
PLAIN = ChatFormat(
    "plain",
    "",
    ("System:", "User:", "Assistant:"),  # where a line begins
    stop_strings=("\nUser:",),
    begins_with_space=True,
)
FORMATS = (CHATML, LLAMA3, LLAMA2, ZEPHYR)


# Templates for models that have none, or one of a format that is not known; None: plain text.
CHAT_TEMPLATES: dict[str, str | None] = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": None,
}


def is_written_by(template: str, form: ChatFormat) -> bool:
    """Whether a template with a format's sign writes that format, and not one of its relatives."""
    if form is CHATML:
        return _CHATML_END.search(template) is not None
    if form is LLAMA3:
        return "<|eot_id|>" in template
    if form is ZEPHYR:  # all turns end with eos_token, not the assistant's alone
        turns = re.split(r"<\|user\|>|['\"]<\|['\"]", template)[1:]
        written = [turn.partition("}}")[0] for turn in turns]
        return all("eos_token" in turn for turn in written if "content" in turn) and any(
            "content" in turn for turn in written
        )
    return True


def default_system(template: str) -> str | None:
    """The system prompt that a ChatML template writes into a conversation that has none."""
    for pattern in _DEFAULT_SYSTEM:
        if match := pattern.search(template):
            return re.sub(
                r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["text"]
            )
    return None
