"""The byte-level BPE tokenizer of GPT-2 (Radford et al. 2019, section 2.2).

    text → pieces (pattern.py) → UTF-8 bytes → one token a byte → merges (merge.py) → ids

Every byte is in the vocabulary, so every text can be encoded and nothing is ever unknown. Not quite
so where a vocabulary was trained on text without the 256 bytes as a start: SmolLM2's lacks six
control characters, and two bytes that only code points not assigned yet begin with. Such bytes are
left out of the ids, as Hugging Face's tokenizers do. (Thirteen bytes, 0xC0, 0xC1 and 0xF5 to 0xFF,
occur in no UTF-8 text and are never missed.)
"""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from numgpt.messages import shown
from numgpt.tokenizer.base import END_OF_TEXT, BaseTokenizer
from numgpt.tokenizer.merge import MergeTable
from numgpt.tokenizer.pattern import Pattern

CACHED_PIECES = 1 << 18  # a language's words repeat; what was merged once is looked up

NEVER_IN_TEXT = b"\xc0\xc1" + bytes(range(0xF5, 0x100))  # of all UTF-8


class Tokenizer(BaseTokenizer):
    """Byte-level BPE."""

    def __init__(
        self,
        vocabulary: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: dict[str, int] | None = None,
        pattern: str = "gpt2",
        *,
        normalizer: str | None = None,
        ignore_merges: bool = False,
        add_prefix_space: bool = False,
        added_tokens: dict[str, int] | None = None,
        normalized_tokens: Collection[str] = (),
        bos_token: str | None = None,
        eos_token: str | None = None,
        add_bos_token: bool = False,
        chat_template: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """A vocabulary of all bytes and what the merges make of them, the merges in the order they
        were found in training.

        pattern is the name of one in pattern.py. normalizer="NFC" composes the characters of
        ordinary text first: é is one character, however it was typed; those of the special and
        added tokens that are named in normalized_tokens are looked for afterwards. With
        ignore_merges a piece that is a token as a whole is that token, even if the merges end
        elsewhere (Llama 3). With add_prefix_space a text that does not begin with a space gets one.
        A special token that merges make as well is not made of ordinary text.

        Raises ValueError where a merge's part or result or one of the 95 printable ASCII bytes is
        missing (without those it is no byte-level BPE), or two tokens share an id.
        """
        super().__init__(
            special_tokens,
            added_tokens=added_tokens,
            bos_token=bos_token,
            eos_token=eos_token,
            add_bos_token=add_bos_token,
            chat_template=chat_template,
            settings=settings,
        )
        if normalizer not in (None, "NFC"):
            raise ValueError(f"normalizer={shown(normalizer)} is not supported, only 'NFC' or none")
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        self.pattern = Pattern(pattern)
        self.normalizer, self.ignore_merges = normalizer, bool(ignore_merges)
        self.add_prefix_space = bool(add_prefix_space)
        self.normalized_tokens = frozenset(normalized_tokens) if normalizer else frozenset()
        made = 0  # of the special and added tokens by merges, too
        for text, id in (self.special_tokens | self.added_tokens).items():
            ordinary = self.vocabulary.get(text.encode())
            if not text or ordinary not in (None, id):
                raise ValueError(
                    f"the special token {shown(text)} is empty, or an ordinary token with another"
                    " id, too"
                )
            made += ordinary is not None
        self._bytes = {id: token for token, id in self.vocabulary.items()} | self._special_bytes
        self._bytes |= {id: text.encode() for text, id in self.added_tokens.items()}
        named = len(self.special_tokens) + len(self.added_tokens)
        if len(self._bytes) != len(self.vocabulary) + named - made:
            raise ValueError("the vocabulary gives one id to two tokens")
        if min(self._bytes, default=0) < 0:
            raise ValueError(f"the vocabulary has a negative id: {min(self._bytes)}")
        self._byte_ids = [self.vocabulary.get(bytes([byte]), -1) for byte in range(256)]
        self._missing = bytes(byte for byte, id in enumerate(self._byte_ids) if id < 0)
        if printable := [byte for byte in self._missing if 0x20 <= byte <= 0x7E]:
            raise ValueError(
                f"the vocabulary lacks the byte {shown(bytes(printable[:1]))}: not a byte-level BPE"
            )
        table = []
        for number, (left, right) in enumerate(self.merges):
            try:
                table.append((vocabulary[left], vocabulary[right], vocabulary[left + right]))
            except KeyError as error:
                raise ValueError(
                    f"merge {number} joins {shown(left)} and {shown(right)},"
                    f" but {shown(error.args[0])} is not in the vocabulary"
                ) from None
        self._table = MergeTable(table)
        # A special or added token that merges make -> its two parts.
        named_ids = {*self.special_tokens.values(), *self.added_tokens.values()}
        self._parts = {m: (left, right) for left, right, m in reversed(table) if m in named_ids}
        self._apart = self._parts.keys() & self.special_tokens.values()
        self._pieces = _PieceCache(self._merge_piece)

    @property
    def lacks_bytes_of_text(self) -> bool:
        """Whether a text can hold bytes that the vocabulary has not, and the ids leave out."""
        return any(byte not in NEVER_IN_TEXT for byte in self._missing)

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode_ordinary(self, text: str) -> list[int]:
        if self.add_prefix_space and text and not text.startswith(" "):
            text = f" {text}"
        return self.encode_rest(text)

    def encode_rest(self, text: str) -> list[int]:
        if self.normalizer is not None:
            text = unicodedata.normalize("NFC", text)  # the only one that is supported
        pieces = map(self._pieces.__getitem__, self.pattern.split(text))
        return list(itertools.chain.from_iterable(pieces))

    def take_apart(self, ids: list[int], which: Collection[int]) -> list[int]:
        which = self._parts.keys() & which
        while any(id in which for id in ids):
            ids = [p for id in ids for p in (self._parts[id] if id in which else (id,))]
        return ids

    def cut_at(self, tokens: Collection[str], text: str) -> list[str]:
        later = self.normalized_tokens.intersection(tokens)
        pieces = super().cut_at(frozenset(tokens) - later, text)
        if not later:
            return pieces
        forms = {unicodedata.normalize("NFC", token): token for token in later}
        cut: list[str] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                cut.append(piece)
            else:
                found = super().cut_at(forms, unicodedata.normalize("NFC", piece))
                cut += [forms[p] if n % 2 else p for n, p in enumerate(found)]
        return cut

    def token_to_bytes(self, id: int) -> bytes:
        try:
            return self._bytes[id]
        except KeyError:
            raise ValueError(
                f"token id {id} is not in the vocabulary of {self.vocab_size}"
            ) from None

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out, and for a
        tokenizer like GPT-2's also vocab.json and merges.txt, which can't tell others apart; in
        place of any tokenizer in the directory."""
        from numgpt.tokenizer.files import save_bpe

        save_bpe(self, directory)

    @classmethod
    def train(
        cls,
        texts: str | os.PathLike | Iterable[str | os.PathLike],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        min_frequency: int = 2,
        progress: bool = False,
        pattern: str = "gpt2",
    ) -> Tokenizer:
        """Learn a vocabulary: see numgpt.tokenizer.train.train_bpe."""
        from numgpt.tokenizer.train import train_bpe

        return train_bpe(cls, texts, vocab_size, special_tokens, min_frequency, progress, pattern)

    def _merge_piece(self, piece: str) -> list[int]:
        data = piece.encode()
        token = self.vocabulary.get(data)
        if token in self._apart:
            token = None
        if token is not None and (self.ignore_merges or self._table.makes_whole(token)):
            return [token]
        if self._missing:
            data = data.translate(None, self._missing)
        byte_ids = self._byte_ids
        ids = self._table.merge([byte_ids[byte] for byte in data])
        return self.take_apart(ids, self._apart) if self._apart else ids


class _PieceCache(dict):
    """piece -> ids; computed when first asked for, forgotten all at once when there are too
    many."""

    def __init__(self, compute):
        super().__init__()
        self._compute = compute

    def __missing__(self, piece: str) -> list[int]:
        ids = self._compute(piece)
        if len(piece) <= 64:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids
