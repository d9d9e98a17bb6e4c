"""Pre-tokenising: cutting text into the pieces that BPE works on, one at a time.

GPT-2's pattern (Radford et al. 2019, section 2.2) keeps letters, digits and other signs apart, and
lets a word take the space before it. Merges never cross a cut, so "dog." and "dog!" share "dog".
"""

from __future__ import annotations

import re

import regex

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# In ASCII text \p{L} and \p{N} are these letters and digits, and the standard library's faster `re`
# can match them.
LETTERS, DIGITS = "A-Za-z", "0-9"


class Pattern:
    """Splits text by a pre-tokenising pattern."""

    def __init__(self, source: str = GPT2_PATTERN):
        self.source = source
        self._unicode = regex.compile(source)
        self._ascii = None
        if source == GPT2_PATTERN:
            in_class = source.replace(r"[^\s\p{L}\p{N}]", rf"[^\s{LETTERS}{DIGITS}]")
            ascii_source = in_class.replace(r"\p{L}", f"[{LETTERS}]").replace(
                r"\p{N}", f"[{DIGITS}]"
            )
            self._ascii = re.compile(ascii_source, re.ASCII)

    def split(self, text: str) -> list[str]:
        """The pieces of the text, in order; together they are the text."""
        if self._ascii is not None and text.isascii():
            return self._ascii.findall(text)
        return self._unicode.findall(text)
