"""Records in the keys that other collections have -> messages, which are ours.

    {"conversations": [{"from": "human", "value": …}, …]}         ShareGPT's
    {"instruction": …, "input": …, "output": …}                   alpaca's; also system, history
    {"question": …, "answer": …}                                  and other names of the two

What a record is read as is counted by its keys, so that a person sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numgpt.messages import shown

OURS = frozenset(("messages", "prompt", "completion", "chosen", "rejected"))  # then it is none
# Who speaks, in ShareGPT's words.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS |= {"chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
SPEAKERS |= {"model": "assistant", "system": "system", "tool": "tool", "observation": "tool"}
# In small letters: capitals are read as well.
ASKED = ("instruction", "question", "query", "input", "user", "human", "q")
SAID = ("output", "answer", "response", "assistant", "gpt", "a")
BESIDE = ("input", "context")  # of an instruction or a question: what it is about
_TEXT_PARTS = ("text", "input_text", "output_text")


def as_messages(fields: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """A record with its conversation as messages of texts, and the keys that these came from: "" of
    a record that has ours.  Raises ValueError for what looks like one of these dialects, but lacks
    something."""
    if OURS.isdisjoint(name for name, value in fields.items() if value is not None):
        for name in ("conversations", "conversation"):
            if isinstance(fields.get(name), list):
                spoken = [_of_sharegpt(turn, place) for turn in fields[name]]
                system = fields.get("system")  # which stands beside the turns
                said = [{"role": "system", "content": system}] if system else []
                return _with_texts({"messages": said + spoken} | _tools(fields)), name
        if found := _of_pair(fields, place):
            return found
    return _with_texts(fields), ""


def _tools(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": fields["tools"]} if fields.get("tools") else {}


def _of_sharegpt(turn: Any, place: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # conversations of messages, or what is refused as such
    role = SPEAKERS.get(str(turn["from"]).lower())
    if role is None or "value" not in turn:
        raise ValueError(
            f'{place}: a turn of the conversation is {shown(turn)}: expected {{"from":'
            f' {" | ".join(SPEAKERS)}, "value": …}}'
        )
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {"role": role, "content": turn["value"]} | rest


def _of_pair(fields: dict[str, Any], place: str) -> tuple[dict[str, Any], str] | None:
    """An instruction or a question, what it is about, and what is answered."""
    given = {name.lower(): name for name in fields}
    asked = next((given[name] for name in ASKED if name in given), None)
    said = next((given[name] for name in SAID if name in given), None)
    if asked is None or said is None:
        return None
    around = (given[name] for name in BESIDE if name in given)
    beside = next((name for name in around if name != asked and fields[name]), None)
    names = [name for name in (asked, beside, said) if name is not None]
    for name in (*names, *(n for n in ("system",) if fields.get(n))):
        if not isinstance(fields[name], str):
            raise ValueError(f"{place}: {name} is {shown(fields[name])}, expected a text")
    messages = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    for turn in fields.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError(
                f"{place}: history holds {shown(turn)}, expected [question, answer] pairs"
            )
        messages += _turn(*turn)
    question = "\n\n".join(fields[name] for name in names[:-1] if fields[name])
    found = {"messages": [*messages, *_turn(question, fields[said])]} | _tools(fields)
    return found, " and ".join((asked, said))


def _turn(asked: Any, said: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def _with_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Contents that are lists of texts (OpenAI's parts) as one text each, and developer, which is
    OpenAI's later word, as system."""
    names = ("messages", "prompt", "completion", "chosen", "rejected")
    listed = {name: fields[name] for name in names if isinstance(fields.get(name), list)}
    return fields | {name: [*map(_with_text, messages)] for name, messages in listed.items()}


def _with_text(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    if isinstance(role, str):
        message = message | {"role": "system" if role == "developer" else role.lower()}
    parts = message.get("content")
    if not isinstance(parts, list) or not all(_is_text_part(part) for part in parts):
        return message
    return message | {"content": "".join(part["text"] for part in parts)}


def _is_text_part(part: Any) -> bool:
    is_of_text = isinstance(part, dict) and part.get("type") in _TEXT_PARTS
    return is_of_text and isinstance(part.get("text"), str)
