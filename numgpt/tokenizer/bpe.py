"""The byte-level BPE tokenizer of GPT-2 (Radford et al. 2019, section 2.2).

    text → pieces (pattern.py) → UTF-8 bytes → one token a byte → merges (merge.py) → ids

Every byte is in the vocabulary, so every text can be encoded and nothing is ever unknown.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

from numgpt.tokenizer.base import END_OF_TEXT, BaseTokenizer
from numgpt.tokenizer.merge import MergeTable
from numgpt.tokenizer.pattern import GPT2_PATTERN, Pattern

CACHED_PIECES = 1 << 18  # a language's words repeat; what was merged once is looked up


class Tokenizer(BaseTokenizer):
    """Byte-level BPE."""

    def __init__(
        self,
        vocabulary: Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: dict[str, int] | None = None,
        pattern: str = GPT2_PATTERN,
    ):
        """A vocabulary of all 256 bytes and what the merges make of them, the merges in the order
        they were learnt.

        Raises ValueError where a byte or a merge's part or result is missing, or two tokens share
        an id.
        """
        super().__init__(special_tokens)
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        self.pattern = Pattern(pattern)
        for text in self.special_tokens:
            if text.encode() in self.vocabulary or not text:
                raise ValueError(f"the special token {text!r} is empty or an ordinary token too")
        self._bytes = {id: token for token, id in self.vocabulary.items()} | self._special_bytes
        if len(self._bytes) != len(self.vocabulary) + len(self.special_tokens):
            raise ValueError("the vocabulary gives one id to two tokens")
        if min(self._bytes, default=0) < 0:
            raise ValueError(f"the vocabulary has a negative id: {min(self._bytes)}")
        try:
            self._byte_ids = [self.vocabulary[bytes([byte])] for byte in range(256)]
        except KeyError as error:
            raise ValueError(
                f"the vocabulary lacks the byte {error.args[0]!r}: not a byte-level BPE"
            ) from None
        try:
            table = [
                (vocabulary[left], vocabulary[right], vocabulary[left + right])
                for left, right in self.merges
            ]
        except KeyError as error:
            missing = error.args[0]
            number, (left, right) = next(
                (number, pair)
                for number, pair in enumerate(self.merges)
                if missing in (*pair, pair[0] + pair[1])
            )
            raise ValueError(
                f"merge {number} joins {left!r} and {right!r},"
                f" but {missing!r} is not in the vocabulary"
            ) from None
        self._table = MergeTable(table)
        self._pieces = _PieceCache(self._merge_piece)

    @property
    def vocab_size(self) -> int:
        return max(self._bytes) + 1

    def encode_ordinary(self, text: str) -> list[int]:
        pieces = map(self._pieces.__getitem__, self.pattern.split(text))
        return list(itertools.chain.from_iterable(pieces))

    def token_to_bytes(self, id: int) -> bytes:
        try:
            return self._bytes[id]
        except KeyError:
            raise ValueError(
                f"token id {id} is not in the vocabulary of {self.vocab_size}"
            ) from None

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json, as Hugging Face
        lays them out."""
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
    ) -> Tokenizer:
        """Learn a vocabulary: see numgpt.tokenizer.train.train_bpe."""
        from numgpt.tokenizer.train import train_bpe

        return train_bpe(cls, texts, vocab_size, special_tokens, min_frequency, progress)

    def _merge_piece(self, piece: str) -> list[int]:
        data = piece.encode()
        token = self.vocabulary.get(data)
        if token is not None and self._table.makes_whole(token):
            return [token]
        byte_ids = self._byte_ids
        return self._table.merge([byte_ids[byte] for byte in data])


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
