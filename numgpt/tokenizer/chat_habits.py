"""What a chat template writes around what people say, found from how it writes an example down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from numgpt.tokenizer.base import any_of
from numgpt.tokenizer.traced import GENERATED, TEMPLATE, Traced, message_of, runs, whose

# messages, add_generation_prompt -> the conversation's text; ValueError where it is refused
Render = Callable[[list[dict[str, Any]], bool], Traced]
IN_LOSS, GIVEN = "1", "0"  # of each character
_SYSTEM = {"role": "system", "content": "Be kind."}
_TALK = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye."},
]
# Where a line begins, for anyone who reads it, and a few blanks.
_LINE_BEGINS = r"((?:^|[\r\v\f\x1c-\x1e\x85\u2028\u2029])[ \t]{0,20})"
# Marks of turns that are mere text: <|user|>, <<SYS>>, [INST]; User: at the beginning of a line.
_BRACKETED = re.compile(r"<<[^<>\s]+>>|<[^<>\s]+>|\[/?[A-Z_]+\]")
_LABEL = re.compile(r"^[ \t]*((?:#+ ?)?[^\W\d_][\w ]{0,30}:)", re.MULTILINE)


class Habits(NamedTuple):
    """What is written around questions and answers."""

    markers: frozenset[str] = frozenset()  # tokens that mark turns
    brackets: frozenset[str] = frozenset()  # texts that do, …
    labels: frozenset[str] = frozenset()  # … and those that do where a line begins
    prompt: str = ""  # begins an answer
    end: str = ""  # ends one: white space, and a token …
    last_end: str = ""  # … or the conversation: the same, or another
    end_is_token: bool = False  # … or, where this is not so, a text
    ends: frozenset[str] = frozenset()  # tokens between an answer and the next question
    stop: str | None = None  # a text that ends an answer, where no token does
    space: bool = False  # an answer's first token brings the space before it

    def without_marks(self, content: str, breaker: str) -> str:
        """What somebody says, with texts that mark turns broken in two."""
        for marks, begins in ((self.brackets, "()"), (self.labels, _LINE_BEGINS)):
            flags = re.MULTILINE | re.IGNORECASE if marks is self.labels else re.MULTILINE
            for mark in sorted(marks):
                pattern = f"{begins}({re.escape(mark[0])})({re.escape(mark[1:])})"
                content = re.sub(pattern, rf"\g<1>\g<2>{breaker}\g<3>", content, flags=flags)
        return content


def habits_of(render: Render, tokens: frozenset[str], source: str) -> Habits:
    """The habits of a template, of a tokenizer with these added tokens."""
    with_system = _around(render, [_SYSTEM, *_TALK])
    around, asked = with_system or _around(render, _TALK), _around(render, _TALK[:1], True)
    if around is None or asked is None:  # it is for conversations of another kind
        return Habits(frozenset(token for token in tokens if token in source))
    *before, to_answer, after_answer, at_end = around
    # Text of the template's own before a conversation is no mark, only what stands around turns is.
    gaps = [*before[0 if with_system else 1 :], after_answer, at_end]
    prompt = _prompt(asked[-1], at_end, to_answer)
    begins = to_answer.rpartition(prompt)[2] if prompt and prompt in to_answer else ""
    any_token = any_of(tokens)
    texts = [" ".join(any_token.split(gap)[::2]) for gap in (*gaps, to_answer)]
    labels = _found(_LABEL, [gap for gap in (*gaps, to_answer) if not any_token.search(gap)])
    end, stop = _end_of_turn(after_answer, any_token)
    answered = _around(render, _TALK[:2])
    last_end = "" if answered is None else _end_of_turn(answered[-1], any_token)[0]
    return Habits(
        _marks(any_token, [*before[1:], after_answer, at_end], [to_answer, before[0]]),
        _marks(_BRACKETED, texts[:-1], texts[-1:]),
        labels | {"System:"} if labels else labels,
        prompt,
        end,
        last_end,
        bool(end) and stop is None,
        # … but for those that an answer begins with.
        _found(any_token, [after_answer]) - _found(any_token, [begins]),
        stop,
        to_answer == f"{asked[-1]} ",
    )


def default_system(render: Render) -> str | None:
    """The system prompt that is written where a conversation has none."""
    given, alone = _around(render, [_SYSTEM, _TALK[0]]), _around(render, _TALK[:1])
    if given is None or alone is None:
        return None
    before, after, opening = given[0], given[1], alone[0]
    fits = opening.startswith(before) and opening.endswith(after)
    return opening[len(before) : len(opening) - len(after)] or None if fits else None


def loss_mask_of(text: Traced, numbers: set[int], habits: Habits) -> str:
    """IN_LOSS or GIVEN for each character: of the messages with these numbers what is said, from
    where an answer begins to what ends it; or what {% generation %} marks of them."""
    flags = [GIVEN] * len(text)
    if max(text.origin, default="") >= chr(GENERATED):
        for start, stop, generated in runs(text.origin, lambda origin: origin >= chr(GENERATED)):
            if generated and numbers & set(map(message_of, text.origin[start:stop])):
                flags[start:stop] = IN_LOSS * (stop - start)
        return "".join(flags)
    places = list(runs(text.origin, message_of))

    def gap(run: int) -> str:
        """What the template writes there."""
        start, stop, number = places[run] if 0 <= run < len(places) else (0, 0, None)
        return text[start:stop].plain if number is None else ""

    written: dict[int | None, list[int]] = {}
    for run, (_, _, number) in enumerate(places):
        written.setdefault(number, []).append(run)
    for number in numbers & written.keys():
        own = written[number]
        start, stop = places[own[0]][0], places[own[-1]][1]
        before, after = gap(own[0] - 1), gap(own[-1] + 1)
        if habits.prompt and (place := before.rfind(habits.prompt)) >= 0:
            start -= len(before) - place - len(habits.prompt)
        last = own[-1] + 2 >= len(places)
        for end in (habits.last_end, habits.end) if last else (habits.end,):
            if end and (place := after.find(end)) >= 0:
                stop += place + len(end)
                break
        flags[start:stop] = IN_LOSS * (stop - start)
    return "".join(flags)


def _around(
    render: Render, messages: list[dict[str, Any]], asked: bool = False
) -> list[str] | None:
    """What is written before, between and after messages; None where they are not written one after
    another.  A template may want contents as lists of parts."""
    in_parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    for form in (messages, in_parts):
        try:
            text = render(form, asked)
        except ValueError:
            continue
        gaps, numbers = [""], []
        for start, stop, by in runs(text.origin, whose):
            if by == TEMPLATE:
                gaps[-1] += text[start:stop].plain
            elif (number := message_of(by)) is not None:
                numbers.append(number)
                gaps.append("")
        if numbers == list(range(len(messages))):
            return gaps
    return None


def _found(pattern: re.Pattern, gaps: Iterable[str]) -> frozenset[str]:
    return frozenset(mark for gap in gaps for mark in pattern.findall(gap))


def _marks(pattern: re.Pattern, gaps: Iterable[str], before: Iterable[str]) -> frozenset[str]:
    """What marks turns; not <think></think> before an answer or a conversation alone: these are
    part of it."""
    found = [_found(pattern, [gap]) for gap in before]
    alone = {mark for marks in found for mark in marks if _twin(mark) not in marks}
    return _found(pattern, gaps) | alone


def _twin(mark: str) -> str:
    """</think> of <think>, and the other way round."""
    return f"<{mark[2:]}" if mark.startswith("</") else f"</{mark[1:]}"


def _prompt(asked: str, at_end: str, to_answer: str) -> str:
    """What begins an answer: of what is written where one is asked for, without what ends a
    question."""
    if asked == at_end:  # there is nothing else, or no such thing in this template
        return asked if to_answer.rstrip() == asked.rstrip() else ""
    return asked.removeprefix(at_end)


def _end_of_turn(after_answer: str, any_token: re.Pattern) -> tuple[str, str | None]:
    """What ends an answer, of what is written between it and the next question; and the text by
    which it is noticed, where no token tells."""
    token = any_token.search(after_answer)
    if token and not after_answer[: token.start()].strip():
        return after_answer[: token.end()], None
    if bracket := _BRACKETED.search(after_answer):
        return after_answer[: bracket.end()], bracket[0]
    if label := _LABEL.search(after_answer):
        before = after_answer[: label.start(1)]
        return before, f"\n{label[1]}" if before.endswith("\n") else label[1]
    return "", None
