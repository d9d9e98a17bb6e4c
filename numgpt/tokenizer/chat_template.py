"""Conversations as the tokens that chat models were trained on.

A model comes with a template that writes its conversations down. What it writes is followed
character by character (traced.py), and so is known to be the template's or somebody's:

- what the template writes is tokenised with its markers, special tokens and others;
- what people write never becomes one: in text from a person, a file or a tool, a special token's
  text is ordinary text, and so is any other added token that the template writes too;
- what the assistant says may hold added tokens (<tool_call>, <think>), but for special ones and for
  those by which the template marks turns.

Text between two markers is tokenised as one, so that on text without markers the tokens are those
of transformers. Marks that are mere text ("User:", [INST]) are broken in two by an invisible space
where people write them.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from numgpt.messages import shown
from numgpt.tokenizer.base import any_of, check_unicode
from numgpt.tokenizer.chat_formats import CHATML, LLAMA3, PLAIN, NativeFormat, known_format
from numgpt.tokenizer.chat_habits import GIVEN, IN_LOSS, Habits, habits_of, loss_mask_of
from numgpt.tokenizer.chat_habits import default_system as default_system_of
from numgpt.tokenizer.conversation import MadeIds, as_json, checked_messages, is_made
from numgpt.tokenizer.traced import TEMPLATE, UNKNOWN, Traced, joined, message_of, runs, whose

if TYPE_CHECKING:
    from numgpt.tokenizer.base import BaseTokenizer
    from numgpt.tokenizer.jinja_template import JinjaTemplate

Messages = Sequence[Mapping[str, Any]]  # {"role": …, "content": …}, and what else is read
Tools = Sequence[Mapping[str, Any]]  # JSON schemas of functions
ZERO_WIDTH_SPACE = "\u200b"
_BESIDE = ("tools", "documents")  # what is written beside a conversation


class ChatTemplate:
    """The chat format of a tokenizer."""

    def __init__(self, tokenizer: BaseTokenizer, variables: Mapping[str, Any] | None = None):
        """variables are handed to the template beside the conversation (enable_thinking, tools, …).
        Raises ValueError where the template can't be rendered."""
        self.tokenizer = tokenizer
        self.variables = {n: value for n, value in (variables or {}).items() if value is not None}
        template = tokenizer.chat_template
        if self.variables.get("tools"):  # for which a tokenizer may have a template of its own
            template = tokenizer.settings.get("chat_templates", {}).get("tool_use", template)
        if template is not None and not isinstance(template, str):
            raise ValueError(f"chat_template={shown(template)}: expected a text, or None")
        check_unicode(template or "")
        self._tokens = tokenizer.special_tokens | tokenizer.added_tokens
        self.format: NativeFormat | JinjaTemplate
        if template is None:  # then the markers tell
            markers = {"<|im_start|>": CHATML, "<|start_header_id|>": LLAMA3}
            self.format = next((markers[m] for m in markers if m in self._tokens), PLAIN)
        else:
            self.format = known_format(template) or _jinja(template)
        if self.format is PLAIN and not self._can_write("User: \nAssistant: "):
            raise ValueError(
                "the tokenizer lacks characters of the roles in a conversation (User:, Assistant:):"
                " this model continues text, it can't chat"
            )
        # What breaks a mark in two, in the models' eyes as well.
        self._breaker = ZERO_WIDTH_SPACE if self._can_write(ZERO_WIDTH_SPACE) else " "

    def __reduce__(self) -> tuple[type[ChatTemplate], tuple[Any, ...]]:
        return type(self), (self.tokenizer, self.variables)  # a copy compiles its own program

    @property
    def unused_variables(self) -> list[str]:
        """Those that the template does not ask for."""
        return sorted(self.variables.keys() - self.format.variables)

    @functools.cached_property
    def marker_ids(self) -> frozenset[int]:
        """The tokens that no message may bring: special ones, and others that mark turns."""
        markers = {*self.tokenizer.special_tokens, *self.habits.markers}
        return frozenset(self._tokens[marker] for marker in markers)

    def end_ids(self) -> list[int]:
        """The tokens that end an answer: also one that begins the next turn, which is not the
        model's to begin."""
        ends = {self.tokenizer.eos_token, *self.habits.ends}
        return sorted(self._tokens[end] for end in ends if end in self._tokens)

    def stop_strings(self) -> tuple[str, ...]:
        """The texts that end an answer where no token does."""
        return () if self.habits.stop is None else (self.habits.stop,)

    # --- a conversation ---

    def text(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.  With add_generation_prompt it ends where an answer begins.

        A message is {"role": …, "content": text}; one that the model has made may have "ids" as
        well, its MadeIds. Raises ValueError for a message that the format can't express.
        """
        return self._render(messages, add_generation_prompt).plain

    def ids(
        self, messages: Messages, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> list[int]:
        """The tokens of a conversation."""
        text = self._render(messages, add_generation_prompt, tools)
        return self._encode(text, messages, GIVEN * len(text))[0]

    def examples(
        self, messages: Messages, trained: Sequence[bool], tools: Tools | None = None
    ) -> tuple[list[int], list[bool]]:
        """The tokens of a conversation, and which of them a model is to learn: of the messages that
        are marked, what the assistant says and what ends its turn; or what the template itself
        marks by {% generation %}.

        A token that reaches over a border is trained on if its last character is. Where no token
        ends a turn, the last one ends with that of the text.
        """
        text = self._render(messages, tools=tools)
        flags = loss_mask_of(text, {n for n, flag in enumerate(trained) if flag}, self.habits)
        ids, of_ids = self._encode(text, messages, flags)
        last = self.tokenizer.eos_token_id
        if not self.habits.end_is_token and last is not None and trained[-1] and ids[-1:] != [last]:
            ids, of_ids = [*ids, last], [*of_ids, True]
        return ids, of_ids

    def _render(
        self, messages: Messages, add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> Traced:
        """The text of a conversation, with marks that people wrote held apart."""
        return self._held_apart(self._rendered(messages, add_generation_prompt, tools), messages)

    def _rendered(
        self,
        messages: Messages,
        add_generation_prompt: bool,
        tools: Tools | None = None,
        without: Collection[str] = (),
    ) -> Traced:
        """… as the template writes it."""
        said = checked_messages(messages)
        variables = self.variables | ({} if tools is None else {"tools": tools})
        variables = {name: value for name, value in variables.items() if name not in without}
        if tools is not None and "tools" not in self.format.variables:
            raise ValueError("the chat template has no place for tools: leave them out")
        variables = as_json(variables, "a variable of the chat template")
        names = self.tokenizer.named_tokens
        return self.format.render(said, add_generation_prompt, names, variables)

    @functools.cached_property
    def habits(self) -> Habits:
        """What the template writes around questions and answers."""
        render = functools.partial(self._rendered, without=_BESIDE)
        return habits_of(render, frozenset(self._tokens), self.format.source)

    @property
    def default_system(self) -> str | None:
        """The system prompt that the template writes where a conversation has none."""
        return default_system_of(functools.partial(self._rendered, without=_BESIDE))

    # --- text to tokens ---

    def _encode(self, text: Traced, messages: Messages, mask: str) -> tuple[list[int], list[bool]]:
        """The tokens of a conversation's text, and its loss mask."""
        ids: list[int] = []
        flags: list[bool] = []
        waiting, waiting_mask = "", ""  # text between two markers

        def encode_waiting() -> None:
            nonlocal waiting, waiting_mask
            found = self.tokenizer.encode_ordinary(waiting) if waiting else []
            found = self.tokenizer.take_apart(found, self.marker_ids)
            ids.extend(found)
            flags.extend(self._flags(found, waiting, waiting_mask))
            waiting = waiting_mask = ""

        self._refuse_unknown(text)
        kept = self._kept(text, messages)
        allowed = self._allowed(text)
        for start, stop, number in runs(text.origin, message_of):
            if start in kept:
                lead, made = kept[start]
                waiting = waiting[: len(waiting) - lead]
                waiting_mask = waiting_mask[: len(waiting)]
                encode_waiting()
                ids.extend(made)
                flags.extend([mask[start] == IN_LOSS] * len(made))
                continue
            for begin, end, template in runs(text.origin[start:stop], _is_template):
                part = text[start + begin : start + end].plain
                assistant = number is not None and messages[number]["role"] == "assistant"
                tokens = allowed[0 if template else 1 if assistant else 2]
                place = start + begin
                pieces = self.tokenizer.cut_at(tokens, part)
                unchanged = sum(map(len, pieces)) == len(part)
                for index, piece in enumerate(pieces):
                    place += len(piece)
                    last = mask[place - 1 if unchanged else start + end - 1]
                    if index % 2:
                        encode_waiting()
                        ids.append(self._tokens[piece])
                        flags.append(last == IN_LOSS)
                    else:
                        waiting += piece
                        own = mask[place - len(piece) : place] if unchanged else last * len(piece)
                        waiting_mask += own
        encode_waiting()
        return ids, flags

    def _allowed(self, text: Traced) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The tokens that the template, the assistant and others may write."""
        added = frozenset(self.tokenizer.added_tokens)
        written = self.format.source + "".join(
            text[start:stop].plain
            for start, stop, template in runs(text.origin, _is_template)
            if template
        )
        of_others = frozenset(token for token in added if token not in written)
        return frozenset(self._tokens), added - self.habits.markers, of_others

    def _kept(self, text: Traced, messages: Messages) -> dict[int, tuple[int, MadeIds]]:
        """Where the text of tokens that the model made itself survives whole: its place -> how many
        characters before it are theirs too, and the tokens."""
        kept, stretches = {}, dict[int, list[tuple[int, int]]]()
        for start, stop, number in runs(text.origin, message_of):
            if number is not None and is_made(messages[number]):
                stretches.setdefault(number, []).append((start, stop))
        for number, places in stretches.items():
            (start, stop), made = places[0], messages[number]["ids"]
            # A model that brings the space before an answer has not read the template's.
            after_prompt = text[:start].endswith(f"{self.habits.prompt} ")
            lead = 1 if self.habits.space and after_prompt else 0
            if len(places) == 1 and text[start:stop] == messages[number]["content"]:
                kept[start] = lead, made
        return kept

    def _flags(self, ids: list[int], text: str, mask: str) -> list[bool]:
        """The loss mask of a text's tokens: each has that of its last character."""
        borders = [n for n in range(1, len(text)) if mask[n] != mask[n - 1]]
        if not borders:
            return [mask[:1] == IN_LOSS] * len(ids)
        pieces = [self.tokenizer.token_to_bytes(id) for id in ids]
        exact = b"".join(pieces) == text.encode()

        def place(border: int) -> int:
            """… in the tokens' bytes: not the text's, where a normalizer changed it."""
            if exact:
                return len(text[:border].encode())
            return len(self.tokenizer.decode_bytes(self.tokenizer.encode_ordinary(text[:border])))

        places = [place(border) for border in borders]
        first = [0, *borders]
        ends = accumulate(map(len, pieces))
        return [mask[first[bisect.bisect_left(places, end)]] == IN_LOSS for end in ends]

    def _refuse_unknown(self, text: Traced) -> None:
        """Raises ValueError where a marker stands in what can't be followed."""
        unknown = {origin for origin in set(text.origin) if whose(origin) == UNKNOWN}
        if unknown:
            for match in any_of(frozenset(self._tokens)).finditer(text.plain):
                if not unknown.isdisjoint(text.origin[match.start() : match.end()]):
                    raise ValueError(
                        f"the chat template puts {shown(match[0])} and what people say together in"
                        " a way that can't be followed: clear tokenizer.chat_template to chat in"
                        " plain text"
                    )

    # --- marks that are mere text ---

    def _held_apart(self, text: Traced, messages: Messages) -> Traced:
        """The text, with marks that people wrote broken in two, so that they mark nothing."""
        if not (self.habits.brackets or self.habits.labels):
            return text
        parts = []
        for start, stop, by in runs(text.origin, whose):
            part = text[start:stop]
            number = message_of(by)
            made = number is not None and is_made(messages[number])
            if by != TEMPLATE and not made and (broken := self._broken(part.plain)) != part:
                part = Traced(broken, part.origin[0])
            parts.append(part)
        return joined(parts)

    def _broken(self, content: str) -> str:
        if getattr(self.tokenizer, "lacks_bytes_of_text", False):
            # What the vocabulary leaves out can't hold a mark's halves apart.
            while (
                seen := self.tokenizer.decode(self.tokenizer.encode_ordinary(content))
            ) != content:
                content = seen
        return self.habits.without_marks(content, self._breaker)

    def _can_write(self, text: str) -> bool:
        """Whether the vocabulary has all of a text."""
        try:
            return self.tokenizer.decode(self.tokenizer.encode_ordinary(text)) == text
        except ValueError:
            return False


@functools.lru_cache(maxsize=16)
def _jinja(template: str) -> JinjaTemplate:
    from numgpt.tokenizer.jinja_template import JinjaTemplate  # jinja2 is an extra

    return JinjaTemplate(template)


def _is_template(origin: str) -> bool:
    return whose(origin) == TEMPLATE
