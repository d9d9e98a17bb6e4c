r"""Pre-tokenising: cutting text into the pieces that BPE works on, one at a time.

GPT-2's pattern (Radford et al. 2019, section 2.2) keeps letters, digits and other signs apart, and
lets a word take the space before it. Merges never cross a cut, so "dog." and "dog!" share "dog".
Later models changed its details:

    gpt2      GPT-2
    llama3    GPT-4 and Llama 3: contractions in either case, a word takes any one sign before it,
              numbers in groups of up to three digits, signs take the newlines after them
    qwen2     Qwen 2: as llama3, digits one by one
    smollm    SmolLM: as gpt2, digits one by one

Only these are known, by name. A pattern that comes with a model is a program from a stranger: some
take exponential time.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from numgpt.messages import shown

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Hugging Face cuts the digits out first and then applies GPT-2's pattern to what lies between: no
# word or sign takes a space from behind a digit, and white space before a digit stays whole.
_SMOLLM_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
PATTERNS = {
    "gpt2": GPT2_PATTERN,
    "llama3": _LLAMA3_PATTERN,
    "qwen2": _LLAMA3_PATTERN.replace("{1,3}", ""),
    "smollm": _SMOLLM_PATTERN,
}

# The same in ASCII text, where \p{L} and \p{N} are these letters and digits, for the standard
# library's `re`, which is faster; words come first, being the most frequent. That is no change:
# where a contraction can match, at an apostrophe, the first branch can't.
_WORDS = r"[^\r\nA-Za-z0-9']?[A-Za-z]+|'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|'[A-Za-z]+"
_SIGNS = r" ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_PATTERNS = {
    "gpt2": r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+",
    "llama3": rf"{_WORDS}|[0-9]{{1,3}}|{_SIGNS}",
    "qwen2": rf"{_WORDS}|[0-9]|{_SIGNS}",
    "smollm": r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?![^\s0-9])|\s+",
}


class Pattern:
    """Splits text by one of the known pre-tokenising patterns."""

    def __init__(self, name: str = "gpt2"):
        if name not in PATTERNS:
            raise ValueError(
                f"the pre-tokenising pattern {shown(name)} is not known: choose from"
                f" {', '.join(PATTERNS)}"
            )
        self.name = name
        self._ascii = re.compile(_ASCII_PATTERNS[name], re.ASCII)

    def split(self, text: str) -> list[str]:
        """The pieces of the text, in order; together they are the text."""
        return (self._ascii if text.isascii() else self._unicode).findall(text)

    @functools.cached_property
    def _unicode(self) -> Any:
        import regex  # only where it is needed: the import takes some 10 ms

        return regex.compile(PATTERNS[self.name])
