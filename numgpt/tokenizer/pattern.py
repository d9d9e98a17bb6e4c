"""Pre-tokenising: cutting text into the pieces that BPE works on, one at a time.

GPT-2's pattern (Radford et al. 2019, section 2.2) keeps letters, digits and other signs apart, and
lets a word take the space before it. Merges never cross a cut, so "dog." and "dog!" share "dog".
"""

from __future__ import annotations

import functools
import re
from typing import Any

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same in ASCII text, where \p{L} and \p{N} are these letters and digits, for the standard
# library's `re`, which is faster; the order of two branches that can't both match doesn't matter.
GPT2_ASCII_PATTERN = r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"


class Pattern:
    """Splits text by a pre-tokenising pattern."""

    def __init__(self, source: str = GPT2_PATTERN):
        self.source = source
        self._ascii = re.compile(GPT2_ASCII_PATTERN, re.ASCII) if source == GPT2_PATTERN else None

    def split(self, text: str) -> list[str]:
        """The pieces of the text, in order; together they are the text."""
        if self._ascii is not None and text.isascii():
            return self._ascii.findall(text)
        return self._unicode.findall(text)

    @functools.cached_property
    def _unicode(self) -> Any:
        import regex  # only where it is needed: the import takes some 10 ms

        return regex.compile(self.source)
