"""A conversation as it is handed in: messages, and what else a chat template is told; checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numgpt.messages import shown
from numgpt.options import OptionError
from numgpt.tokenizer.base import check_unicode
from numgpt.tokenizer.traced import MOST_MESSAGES

ROLES = ("system", "user", "assistant")
ROLE = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)


class MadeIds(tuple):
    """The tokens of an answer as a model has made them. A type of its own, so that nothing that is
    read from a file or sent by somebody can pass for them."""

    __slots__ = ()


def is_made(message: Mapping[str, Any]) -> bool:
    """Whether a message comes with the tokens that a model made."""
    return isinstance(message.get("ids"), MadeIds)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A copy of the messages, of nothing but what JSON has; without the tokens made of them."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError('messages are a list of {"role": …, "content": …}, at least one')
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"there are {len(messages)} messages: expected up to {MOST_MESSAGES}")
    checked = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            raise ValueError(
                f"message {number} has the role {shown(role)}: expected {', '.join(ROLES)}, or"
                " another word that the template knows"
            )
        fields = {name: value for name, value in message.items() if name != "ids"}
        checked.append(as_json(fields, f"message {number}"))
    return checked


def as_json(value: Any, where: str) -> Any:
    """A copy of a value.  Raises ValueError for what JSON does not have, or nested too deeply."""
    try:
        return _as_json(value, where)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def _as_json(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        check_unicode(value)
        return str.__str__(value)
    if isinstance(value, Mapping) and all(isinstance(name, (str, int, float)) for name in value):
        return {_as_json(name, where): _as_json(item, where) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item, where) for item in value]
    raise ValueError(f"{where} holds {shown(value)}: expected texts, numbers and lists of them")


def template_variables(texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE, as a person types them: values are JSON (true, 3, "…"), or else text.  Raises
    ValueError for what has no name."""
    variables = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if name in ("messages", "add_generation_prompt"):
            raise OptionError("{chat_var}: that is the conversation's, no variable", chat_var=text)
        if not sign or not name.isidentifier():
            raise OptionError(
                "{chat_var}: expected NAME=VALUE, enable_thinking=false", chat_var=text
            )
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables
