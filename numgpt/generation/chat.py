"""A conversation with a model: messages in, answers out, as they are made.

The keys and values of everything said so far stay in a cache, so that a turn costs no more than its
new tokens. When the context is full, the oldest questions go, with their answers, until half of it
is free: what is left is computed again, once, and the turns after that cost their new tokens only.
"""

from __future__ import annotations

import bisect
import json
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from numgpt.files import replacing
from numgpt.generation.decode import stream
from numgpt.generation.endings import before_stop, goes_in_circles
from numgpt.generation.options import GenerationOptions, defaults_of, token_ids
from numgpt.messages import shown
from numgpt.models.kv_cache import KVCache
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError
from numgpt.tokenizer import BaseTokenizer, StreamDecoder
from numgpt.tokenizer.chat_template import ChatTemplate
from numgpt.tokenizer.conversation import MadeIds, checked_messages

# Those that SmolLM2's authors recommend.
DEFAULTS = {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 512}


@dataclass
class TurnStatistics:
    """What the last answer cost."""

    reused_tokens: int = 0  # of the prompt, from the cache
    prompt_tokens: int = 0  # of the prompt, computed
    new_tokens: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0  # for the new tokens after the first
    dropped_messages: int = 0  # since the conversation began, because the context was full
    context_tokens: int = 0  # in use
    context_length: int = 0
    # "stop", "length" (max_new_tokens), "context" (full), "repetition", "interrupted"
    finish_reason: str = "stop"

    @property
    def tokens_per_second(self) -> float:
        return (self.new_tokens - 1) / self.seconds if self.new_tokens > 1 else 0.0


class Chat:
    """A conversation.  `for piece in chat.ask("Hello"): print(piece, end="")`"""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: BaseTokenizer,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        """system is the system prompt; None: the template's own, if it has one. template_variables
        are handed to the chat template (enable_thinking=False). The options are those of
        `generate`; where not given, the model's generation_config decides, else DEFAULTS.

        Raises ValueError where the tokenizer's chat template can't be rendered, or an option is
        invalid.
        """
        if not isinstance(model, LanguageModel) or not isinstance(tokenizer, BaseTokenizer):
            given = f"{type(model).__name__} and {type(tokenizer).__name__}"
            raise TypeError(
                f"a chat is made of a model and its tokenizer, not of {given}:"
                " model, tokenizer = numgpt.load(…)"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, template_variables)
        samples = {"do_sample": model.generation_config.get("do_sample", True)}
        own = defaults_of(model.generation_config, samples | options, single=True)
        self.options: dict[str, Any] = DEFAULTS | samples | own
        self.options = self._checked(options)
        self.statistics = TurnStatistics(context_length=model.context_length)
        self.system: str | None = None
        self._turns: list[dict[str, Any]] = []
        self.dropped_messages = 0  # of _turns, from the front: the context no longer holds them
        self._cache: KVCache | None = None
        self._cached_ids: list[int] = []
        self._speaking: Generator[str, None, None] | None = None
        if system is not None:
            self.set_messages([{"role": "system", "content": system}])

    def __getstate__(self) -> dict[str, Any]:
        # A copy goes its own way from here: with turns of its own, and what it needs of the keys
        # and values computed again. An answer that is being made is not part of it.
        own = {"_turns": list(self._turns), "_cache": None, "_cached_ids": [], "_speaking": None}
        return self.__dict__ | own

    def __repr__(self) -> str:
        return f"<Chat: {len(self.messages)} messages, with {self.model!r}>"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, with the messages that the context no longer holds."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return system + [{"role": m["role"], "content": m["content"]} for m in self._turns]

    def reset(self) -> None:
        """Begin again, with the same system prompt."""
        self.set_messages(self.messages[:1] if self.system is not None else [])

    def set_messages(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Go on from another conversation: user and assistant in turns, after the system if it
        speaks.  Raises ValueError for anything else."""
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise ValueError('a conversation is a list of {"role": …, "content": …}')
        said: list[Any] = [  # by role and content alone: a file may hold anything else, even tokens
            {key: one[key] for key in ("role", "content") if key in one}
            if isinstance(one, Mapping)
            else one  # which the template refuses
            for one in messages
        ]
        for number, message in enumerate(checked_messages(said) if said else ()):
            if not isinstance(message.get("content"), str):
                raise ValueError(f"message {number} has no text as its content")
        system = said[0]["content"] if said and said[0]["role"] == "system" else None
        turns = said if system is None else said[1:]
        for number, message in enumerate(turns):
            if message["role"] != ("user", "assistant")[number % 2]:
                raise ValueError(
                    f"message {number + (system is not None)} is the {message['role']}'s: user and"
                    " assistant take turns, after the system if it speaks"
                )
        if len(turns) % 2:
            raise ValueError("the conversation ends with a question: leave it out, and ask it")
        if len(said) > 1:
            self.template.ids(said)  # which the template may refuse
        if system is not None:  # a question and an answer need room beside it
            asked = [said[0], {"role": "user", "content": "?"}]
            ids = self.template.ids(asked, add_generation_prompt=True)
            if len(ids) > (most := self.model.context_length * 3 // 4):
                raise ValueError(
                    f"the system prompt makes {len(ids)} tokens, and may make {most}, three"
                    " quarters of the model's context: shorten it"
                )
        self._stop_speaking()
        self.system, self._turns, self.dropped_messages = system, turns, 0

    def set_options(self, **options: Any) -> None:
        """Options of `generate` for all answers from now on.  Raises ValueError for one that is
        invalid."""
        self.options = self._checked(options)

    def ask(self, text: str, **options: Any) -> Generator[str, None, None]:
        """Say something; yields the answer in pieces, as they are made.

        The conversation takes in question and answer when the answer ends, also where its reader
        stops listening; the options are for this answer only. Raises ValueError, before anything
        is made, for an empty message, one that the context can't hold, or an option that can't be.
        """
        if not isinstance(text, str):
            raise ValueError(f"the message is no text: {shown(text)}")
        if not text.strip():
            raise ValueError("the message is empty: say something")
        options = self._checked(options)
        self._stop_speaking()
        return self._answer({"role": "user", "content": text}, len(self._turns), options)

    def retry(self, **options: Any) -> Generator[str, None, None]:
        """Answer the last question anew."""
        options = self._checked(options)
        self._stop_speaking()
        if not self._turns:
            raise ValueError("there is no answer yet to make anew")
        return self._answer(self._turns[-2], len(self._turns) - 2, options)

    def save(self, path: str | os.PathLike) -> None:
        """Write the conversation as JSON, a list of messages."""
        self._stop_speaking()
        with replacing(path) as file:
            file.write((json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n").encode())

    def load(self, path: str | os.PathLike) -> None:
        """Go on from a saved conversation.  Raises ValueError naming a file that holds none."""
        try:
            self.set_messages(_read_messages(path))
        except ValueError as error:
            raise ValueError(f"{path} holds no conversation: {error}") from None

    def check_conversation(self, path: str | os.PathLike) -> None:
        """Raises ValueError for a file that holds no conversation, and should not be replaced by
        one."""
        try:
            self.template.text([*_read_messages(path), {"role": "user", "content": ""}])
        except ValueError:
            raise ValueError(f"{path} is there already and holds no conversation") from None

    # --- answering ---

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of one answer over those of all.  Raises ValueError for one that can't be."""
        options = self.options | options
        least, most = options.get("min_new_tokens"), options["max_new_tokens"]
        if "min_new_tokens" in self.model.generation_config and isinstance(most, int):
            options["min_new_tokens"] = min(least, most) if isinstance(least, int) else least
        checked = GenerationOptions.of(**{"tokenizer": self.tokenizer} | options)
        checked.validate(self.model.config.vocab_size)
        if checked.max_new_tokens is None:
            raise OptionError("{max_new_tokens}: expected a whole number", max_new_tokens=None)
        if checked.num_return_sequences != 1:
            raise OptionError.of(checked, "{num_return_sequences}: a message gets one answer")
        return options | {"stop_strings": tuple(checked.stop_strings)}

    def _stop_speaking(self) -> None:
        """End the answer before, if nobody heard its end: what was said counts."""
        if self._speaking is not None:
            self._speaking.close()

    def _answer(
        self, question: dict[str, Any], place: int, options: dict[str, Any]
    ) -> Generator[str, None, None]:
        """Answer a question that stands, with its answer, at a place among the turns."""
        most = options["max_new_tokens"]
        ids, dropped = self._fit(question, place, most)
        room = self.model.context_length - len(ids)
        cache = self._cache_for(ids)
        stops = (*self.template.stop_strings(), *options.pop("stop_strings"))
        options["min_new_tokens"] = min(options.get("min_new_tokens", 0), most, room)
        ends = self.template.end_ids() + token_ids(self.model, "eos_token_id")
        ends = sorted({id for id in ends if id < self.model.config.vocab_size})
        reused = cache.length
        tokens = stream(
            self.model,
            ids,
            kv_cache=cache,
            tokenizer=self.tokenizer,
            generation_config={},  # which the options have
            **{"eos_token_id": ends} | options | {"max_new_tokens": min(most, room)},
        )
        self.dropped_messages = dropped
        self._speaking = self._say(question, place, ids, tokens, stops, reused, min(most, room))
        return self._speaking

    def _say(
        self,
        question: dict[str, Any],
        place: int,
        ids: list[int],
        tokens: Iterator[int],
        stops: Sequence[str],
        reused: int,
        most: int,
    ) -> Generator[str, None, None]:
        made: list[int] = []
        decoder = StreamDecoder(self.tokenizer, skip_special_tokens=True)
        began, first, complete = time.perf_counter(), None, False
        reason = "interrupted"
        answer = ready = ""  # what the tokens spell, and what of it can't be part of a stop string
        space = 1 if self.template.habits.space else 0  # that is not shown
        sent = 0  # characters
        try:
            for token in tokens:
                first = time.perf_counter() if first is None else first
                made.append(token)
                answer += decoder.push(token)
                ready, stopped = before_stop(answer, stops)
                if answer and not answer.startswith(" "):
                    space = 0
                piece, sent = ready[max(sent, space) :], len(ready)
                if piece:
                    yield piece
                if stopped:
                    reason = "stop"
                    break
                if goes_in_circles(made):
                    reason = "repetition"
                    break
            else:
                full = len(ids) + len(made) >= self.model.context_length
                cut = len(made) >= most
                reason = "context" if cut and full else "length" if cut else "stop"
                ready = answer = answer + decoder.finish()
                if piece := ready[max(sent, space) :]:
                    yield piece
            complete = True
        finally:
            first = time.perf_counter() if first is None else first
            cache = self._cache
            assert cache is not None  # _answer has made it
            self._cached_ids = (ids + made)[: cache.length]
            cache.truncate(len(self._cached_ids))
            if made or complete:  # one that was stopped before its first token was never asked for
                said = made if ready == answer else self.tokenizer.encode_ordinary(ready)
                # A marker in an answer marks nothing in the turns to come.
                markers = self.template.marker_ids
                said = [id for id in said if id not in markers]
                answered = {"role": "assistant", "content": ready[space:], "ids": MadeIds(said)}
                self._turns[place:] = [question, answered]
            self.statistics = TurnStatistics(
                reused_tokens=reused,
                prompt_tokens=len(ids) - reused,
                new_tokens=len(made),
                prompt_seconds=first - began,
                seconds=time.perf_counter() - first,
                dropped_messages=self.dropped_messages,
                context_tokens=len(ids) + len(made),
                context_length=self.model.context_length,
                finish_reason=reason,
            )

    def _fit(self, question: dict[str, Any], place: int, most: int) -> tuple[list[int], int]:
        """The tokens of the conversation up to where the answer begins, and how many messages were
        left out for it: older turns, until there is room for an answer."""
        context = self.model.context_length
        reserve = min(most, max(1, context // 4))
        system = [] if self.system is None else [{"role": "system", "content": self.system}]

        def ids_without(dropped: int) -> list[int]:
            messages = [*system, *self._turns[dropped:place], question]
            return self.template.ids(messages, add_generation_prompt=True)

        dropped = min(self.dropped_messages, place)
        ids = ids_without(dropped)
        if len(ids) + reserve > context:
            fewer = range(dropped, place + 1, 2)
            enough = bisect.bisect_left(
                fewer, True, key=lambda dropped: 2 * len(ids_without(dropped)) <= context
            )
            dropped = fewer[min(enough, len(fewer) - 1)]
            ids = ids_without(dropped)
        if len(ids) + reserve > context:
            raise ValueError(
                f"the message makes {len(ids)} tokens, with {reserve} for an answer more than"
                f" the model's context of {context}: shorten it"
            )
        return ids, dropped

    def _cache_for(self, ids: list[int]) -> KVCache:
        """The cache, cut back to what the conversation still begins with."""
        if self._cache is None:
            self._cache = KVCache(self.model, 1, len(ids))
        pairs = zip(ids[:-1], self._cached_ids, strict=False)  # one must be computed
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cache.truncate(common)
        self._cached_ids = ids[:common]
        return self._cache


def _read_messages(path: str | os.PathLike) -> list[Any]:
    try:
        messages = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(messages, list):
        raise ValueError("expected a list of messages")
    return messages
