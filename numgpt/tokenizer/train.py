"""Learning a BPE vocabulary (Sennrich et al. 2016, arXiv:1508.07909, algorithm 1).

Start from the 256 bytes. Count all adjacent pairs of tokens, make the most frequent pair a new
token, replace it everywhere, and repeat until the vocabulary is full.

Merges never cross a piece (pattern.py), so only the distinct pieces and their counts matter, some
ten thousand instead of a whole text; and a merge changes only the pieces that contain its pair, so
the counts are kept up to date instead of being counted again. Of pairs that are equally frequent,
the one with the lower ids wins, left before right, as in Hugging Face's trainer: the result depends
on the counts alone.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from numgpt.messages import shown, tell
from numgpt.options import OptionError
from numgpt.tokenizer.base import any_of, check_unicode
from numgpt.tokenizer.byte_alphabet import BYTES
from numgpt.tokenizer.pattern import Pattern
from numgpt.tokenizer.reading import read_text

if TYPE_CHECKING:
    from numgpt.tokenizer.bpe import Tokenizer


def train_bpe(
    cls: type[Tokenizer],
    texts: str | os.PathLike | Iterable[str | os.PathLike],
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int = 2,
    progress: bool = False,
    pattern: str = "gpt2",
) -> Tokenizer:
    """A tokenizer trained on texts (str) or files (pathlib.Path), or several of either.

    The vocabulary is the 256 bytes in GPT-2's order, then the merges, then the special tokens:
    vocab_size in all, or fewer where no pair occurs min_frequency times any more. progress draws a
    line on stderr. Raises ValueError for a vocab_size that leaves no room, for an unknown pattern
    (pattern.py), and for text that is not valid Unicode; OSError for files that can't be read.
    """
    special_tokens = list(special_tokens)
    room = vocab_size - 256 - len(special_tokens)
    if room < 0:
        raise OptionError(
            "{vocab_size} is too small: 256 bytes and {0} special tokens need {1}",
            len(special_tokens),
            256 + len(special_tokens),
            vocab_size=vocab_size,
        )
    for text in special_tokens:
        if len(text.encode()) < 2 or special_tokens.count(text) > 1:
            raise ValueError(
                f"special token {shown(text)}: expected texts of two bytes or more, each once"
            )
    if min_frequency < 1:
        raise OptionError("{min_frequency}: expected 1 or more", min_frequency=min_frequency)
    pieces = _count_pieces(texts, special_tokens, Pattern(pattern))
    vocabulary = [bytes([byte]) for byte in BYTES]
    merges = []
    for left, right in _learn(pieces, room, min_frequency):
        merges.append((vocabulary[left], vocabulary[right]))
        vocabulary.append(vocabulary[left] + vocabulary[right])
        if progress and len(merges) % 100 == 0:
            tell(f"\rlearning merges: {len(merges)}/{room}", end="")
    if progress:
        tell(f"\rlearning merges: {len(merges)}/{room}")
    specials = {text: len(vocabulary) + index for index, text in enumerate(special_tokens)}
    return cls({token: id for id, token in enumerate(vocabulary)}, merges, specials, pattern)


def _count_pieces(
    texts: str | os.PathLike | Iterable[str | os.PathLike],
    special_tokens: Sequence[str],
    pattern: Pattern,
) -> Counter[str]:
    """How often each piece occurs. Special tokens in the texts are no part of any piece."""
    if isinstance(texts, (str, os.PathLike)):
        texts = [texts]
    counts: Counter[str] = Counter()
    for text in texts:
        for part in read_text(text) if isinstance(text, os.PathLike) else (text,):
            check_unicode(part)
            for between in any_of(frozenset(special_tokens)).split(part)[::2]:
                counts.update(pattern.split(between))
    return counts


def _learn(pieces: Counter[str], room: int, min_frequency: int) -> Iterator[tuple[int, int]]:
    """The pairs to merge, in order; the pair yielded as number n becomes token 256 + n."""
    id_of_byte = {byte: id for id, byte in enumerate(BYTES)}
    words = [[id_of_byte[byte] for byte in piece.encode()] for piece in pieces]
    occurrences = list(pieces.values())
    counts: Counter[tuple[int, int]] = Counter()
    words_with: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += occurrences[index]
            words_with[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    new = 256
    while new < 256 + room and heap:
        count, pair = heapq.heappop(heap)
        if counts[pair] != -count:  # other merges took some of its occurrences: back to its place
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        if -count < min_frequency:
            return
        yield pair
        created = set()
        for index in words_with.pop(pair):
            before, after = words[index], replace_pair(words[index], pair, new)
            for old_pair in pairwise(before):
                counts[old_pair] -= occurrences[index]
            for new_pair in pairwise(after):
                counts[new_pair] += occurrences[index]
                if new in new_pair:
                    words_with[new_pair].add(index)
                    created.add(new_pair)
            words[index] = after
        for new_pair in created:
            heapq.heappush(heap, (-counts[new_pair], new_pair))
        new += 1


def replace_pair(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with each occurrence of the pair, from the left, as one token."""
    result, index, last = [], 0, len(word) - 1
    while index <= last:
        if index < last and word[index] == pair[0] and word[index + 1] == pair[1]:
            result.append(new)
            index += 2
        else:
            result.append(word[index])
            index += 1
    return result
