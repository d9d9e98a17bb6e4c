"""What every tokenizer offers: special tokens, batches, decoding, streams.

Special tokens work as in OpenAI's tiktoken: text that merely spells one ("<|endoftext|>" in a web
page) is text, unless the caller names it in `allowed_special`.
"""

from __future__ import annotations

import codecs
import functools
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from numgpt.messages import shown

END_OF_TEXT = "<|endoftext|>"
MOST_SHOWN = 4  # special tokens in a message


class BaseTokenizer:
    """Text to token ids and back."""

    def __init__(
        self,
        special_tokens: dict[str, int] | None = None,
        *,
        added_tokens: dict[str, int] | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        add_bos_token: bool = False,
        chat_template: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """added_tokens are found in any text, though no merge makes them, and are text when
        decoded; special tokens are neither. bos_token begins a text where add_bos_token is set,
        eos_token ends one (by default it is <|endoftext|>, where that is a special token);
        chat_template is a conversation's form, in Jinja; settings are what tokenizer_config.json
        says that changes nothing here, and is kept (pad_token, padding_side, model_max_length, …).

        Raises ValueError where one of the two is neither a special nor an added token.
        """
        self.special_tokens = dict(special_tokens or {})  # text -> id
        self.added_tokens = dict(added_tokens or {})  # text -> id
        self._special_bytes = {id: text.encode() for text, id in self.special_tokens.items()}
        if eos_token is None and END_OF_TEXT in self.special_tokens:
            eos_token = END_OF_TEXT
        for name, token in (("bos_token", bos_token), ("eos_token", eos_token)):
            if token is not None and token not in self.special_tokens | self.added_tokens:
                raise ValueError(f"{name}={shown(token)} is not one of the special tokens")
        if add_bos_token and bos_token is None:
            raise ValueError("add_bos_token is set, but there is no bos_token to add")
        self.bos_token, self.eos_token = bos_token, eos_token
        self.add_bos_token, self.chat_template = bool(add_bos_token), chat_template
        self.settings = dict(settings or {})

    # --- what a subclass supplies ---

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of text in which nothing is special."""
        raise NotImplementedError

    def encode_rest(self, text: str) -> list[int]:
        """Ids of such text that goes on from other text: nothing is put before it."""
        return self.encode_ordinary(text)

    def token_to_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for.  Raises ValueError for an id that is not in the
        vocabulary."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        raise NotImplementedError

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write the tokenizer's files into the directory."""
        raise NotImplementedError

    def __repr__(self) -> str:
        special = ", ".join([*self.special_tokens][:MOST_SHOWN]) or "none"
        more = "…" if len(self.special_tokens) > MOST_SHOWN else ""
        return f"<{type(self).__name__}: {self.vocab_size} tokens, special: {special}{more}>"

    # --- conveniences ---

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike) -> BaseTokenizer:
        """Load a tokenizer: from a directory, by a shipped name, or by a hub id."""
        from numgpt import formats  # outward, and only when called: tokenizers stand alone

        return formats.load_tokenizer(name_or_path)

    # --- encoding ---

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text, where there is one."""
        return self._id_of(self.bos_token)

    @property
    def named_tokens(self) -> dict[str, str]:
        """The tokens that have a part: bos_token, eos_token, and pad_token and its like."""
        named = {name: token for name, token in self.settings.items() if name.endswith("_token")}
        named |= {"bos_token": self.bos_token, "eos_token": self.eos_token}
        return {name: token for name, token in named.items() if isinstance(token, str)}

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else (self.special_tokens | self.added_tokens).get(token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token that fills up a batch, where there is one."""
        return self._id_of(self.named_tokens.get("pad_token"))

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, where there is one."""
        return self._id_of(self.eos_token)

    def encode(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = (),
        return_tensors: Literal["np"] | None = None,
        add_special_tokens: bool = False,
        continues: bool = False,
    ) -> list[int] | np.ndarray:
        """Ids of a text: a list, or with return_tensors="np" an array (1, T) of int64.

        Special tokens in the text are encoded as such only where allowed_special names them ("all":
        all of them); added tokens always.  With add_special_tokens the text begins with bos_token,
        if the model was trained that way (add_bos_token). A text that continues another gets
        nothing before it, not even the space that some tokenizers put before a text.  Raises
        ValueError for text that is not valid Unicode (unpaired surrogates).
        """
        if not isinstance(text, str):
            raise TypeError(
                f"encode takes text (str), not {type(text).__name__}; several: encode_batch"
            )
        if return_tensors not in (None, "np"):
            raise ValueError(
                f"return_tensors={shown(return_tensors)} is not supported: use 'np' or leave it out"
            )
        check_unicode(text)
        specials = frozenset(self.special_tokens if allowed_special == "all" else allowed_special)
        if unknown := specials - self.special_tokens.keys():
            known = ", ".join([*self.special_tokens][:MOST_SHOWN]) or "none"
            known += ", …" if len(self.special_tokens) > MOST_SHOWN else ""
            raise ValueError(
                f"allowed_special names {shown(min(unknown))}: the special tokens are {known}"
            )
        bos = self.bos_token_id if add_special_tokens and self.add_bos_token else None
        ids = [] if bos is None else [bos]
        for index, piece in enumerate(self.cut_at(specials | self.added_tokens.keys(), text)):
            if index % 2:
                ids.append((self.added_tokens | self.special_tokens)[piece])
            elif piece:
                goes_on = continues and not index
                ids.extend((self.encode_rest if goes_on else self.encode_ordinary)(piece))
        return ids if return_tensors is None else np.array([ids], dtype=np.int64)

    def cut_at(self, tokens: Collection[str], text: str) -> list[str]:
        """The text, cut at these tokens: ordinary text and tokens take turns."""
        return any_of(frozenset(tokens)).split(text) if tokens else [text]

    def take_apart(self, ids: list[int], which: Collection[int]) -> list[int]:
        """The ids, with such of these in parts as merges have made of text."""
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Literal["all"] | Collection[str] = ()
    ) -> list[list[int]]:
        """Ids of several texts."""
        return [list(self.encode(text, allowed_special)) for text in texts]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int] | str:
        """The ids of a conversation in the form that the model was taught (chat_template.py), or
        with tokenize=False its text.

        A message is {"role": "system", "user" or "assistant", "content": text}, and may have what
        else the template reads. No content can become a special token. With add_generation_prompt
        the assistant's answer comes next. tools are JSON schemas of functions; they, documents and
        other variables (enable_thinking=False) are the template's. Warns of those that it does not
        use. Raises ValueError for a message, or a chat_template, that is invalid.
        """
        from numgpt.tokenizer.chat_template import ChatTemplate

        template = ChatTemplate(self, variables | {"tools": tools, "documents": documents})
        if unused := template.unused_variables:
            warnings.warn(f"the chat template does not use {', '.join(unused)}", stacklevel=2)
        return (template.ids if tokenize else template.text)(messages, add_generation_prompt)

    # --- decoding ---

    def decode_bytes(
        self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = False
    ) -> bytes:
        """The bytes of a sequence of ids; they need not be valid UTF-8."""
        try:
            array = np.asarray(ids if hasattr(ids, "__len__") else list(ids))
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise ValueError  # also of numbers of more than 64 bits, which are objects
        except (TypeError, ValueError):
            raise ValueError(
                f"decode takes one sequence of ids below {self.vocab_size}, not {shown(ids)}:"
                " decode several row by row"
            ) from None
        skipped = self._special_bytes if skip_special_tokens else ()
        return b"".join([self.token_to_bytes(id) for id in array.tolist() if id not in skipped])

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        """The text of a sequence of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int], skip_special_tokens: bool = False) -> Iterator[str]:
        """Text as the ids come, one piece for each id (it may be empty), never half a character;
        and the rest."""
        decoder = StreamDecoder(self, skip_special_tokens)
        for id in ids:
            yield decoder.push(id)
        yield decoder.finish()


class StreamDecoder:
    """Decodes ids one at a time and holds back the bytes of an unfinished character."""

    def __init__(self, tokenizer: BaseTokenizer, skip_special_tokens: bool = False):
        self._tokenizer = tokenizer
        self._skipped = tokenizer._special_bytes if skip_special_tokens else ()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this id completes."""
        data = b"" if id in self._skipped else self._tokenizer.token_to_bytes(int(id))
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed, else nothing."""
        return self._utf8.decode(b"", final=True)


def check_unicode(text: str) -> None:
    """Raises ValueError where the text holds an unpaired surrogate, which no encoding can
    express."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is an unpaired surrogate"
            f" (U+{ord(text[error.start]):04X}):"
            " remove it, or decode the text again with errors='replace'"
        ) from None


@functools.lru_cache(maxsize=32)
def any_of(texts: frozenset[str]) -> re.Pattern:
    """A pattern for any of the texts, the longest first, in a group; for none it never matches."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")


# All files that tokenizers are saved in, of any kind: a new tokenizer takes the place of them all.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "tokenizer.model",
)


def tokenizer_files(directory: str | os.PathLike) -> list[str]:
    """The names of the files of a tokenizer that are in a directory."""
    return [name for name in TOKENIZER_FILES if os.path.lexists(Path(directory) / name)]
