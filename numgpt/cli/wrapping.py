"""Text on a terminal as it comes, broken between words instead of wherever the edge is."""

from __future__ import annotations

import re
import unicodedata

LONGEST_HELD = 24  # cells of a word that is held back until its end is known
_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
FENCE = "```"


class WordWrap:
    """`push` takes text in pieces and returns what can be shown of it, `finish` the rest."""

    def __init__(self, width: int):
        self.width = width
        self.column = 0
        self.word = ""  # not shown yet
        self.spaces = ""  # before it
        self.in_code = False  # whose lines stay as they are

    def push(self, text: str) -> str:
        shown = []
        for part in _PARTS.findall(text):
            if part == "\n":
                shown += [self.finish(), "\n"]
                self.column = 0
            elif part.isspace():
                shown.append(self._take_word())
                self.spaces += part
            else:
                for character in part:
                    wide = cells(character) > 1  # a line may break beside each of these
                    if wide or cells(self.word) >= LONGEST_HELD:
                        shown.append(self._take_word())
                    self.word += character
                    if wide:
                        shown.append(self._take_word())
        return "".join(shown)

    def finish(self) -> str:
        """What is still held back."""
        return self._take_word() + self._take_spaces()

    def _take_spaces(self) -> str:
        spaces, self.spaces = self.spaces, ""
        self.column += cells(spaces)
        return spaces

    def _take_word(self) -> str:
        word, self.word = self.word, ""
        if not word:
            return ""
        if self.column == 0 and not self.spaces and word.startswith(FENCE):
            self.in_code = not self.in_code
        edge = self.column + cells(self.spaces) + cells(word) > self.width
        if edge and self.column > 0 and not self.in_code:
            self.spaces, self.column = "", cells(word)
            return "\n" + word
        spaces = self._take_spaces()
        self.column += cells(word)
        return spaces + word


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
