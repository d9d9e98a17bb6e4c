"""One token a character: for tiny models on one text, where the whole vocabulary fits on a line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from numgpt.messages import shown
from numgpt.tokenizer.base import BaseTokenizer, check_unicode


class CharTokenizer(BaseTokenizer):
    """Ids are the places of characters in a fixed list."""

    def __init__(self, characters: Sequence[str]):
        """Raises ValueError for an entry that is not one character, or is there twice."""
        super().__init__()
        for character in characters:
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(
                    f"{shown(character)} in the list of characters is not one character"
                )
            check_unicode(character)
        if len(set(characters)) != len(characters) or not characters:
            raise ValueError("the list of characters is empty or names one twice")
        self.characters = list(characters)
        self._ids = {character: id for id, character in enumerate(characters)}

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """The characters that occur in the texts, in the order of their code points."""
        found: set[str] = set()
        for text in texts:
            found.update(text)
        if not found:
            raise ValueError("the text is empty: there are no characters to learn")
        return cls(sorted(found))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode_ordinary(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"the character {shown(character)} (U+{ord(character):04X}) is not among the"
                f" {self.vocab_size} that this tokenizer knows: leave it out, or use a BPE"
                " tokenizer, which knows every character"
            ) from None

    def token_to_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is not in the vocabulary of {self.vocab_size}")
        return self.characters[id].encode()

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out, in place
        of any tokenizer in the directory."""
        from numgpt.tokenizer.files import save_characters

        save_characters(self, directory)
