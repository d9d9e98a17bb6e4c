"""Learning BPE as minbpe does it: before each merge, count all pairs of the whole text again.

That is the algorithm as the paper gives it, and the clearest. To its end it takes the better part
of an hour, so it is timed at some of its merges, and the time of those between is interpolated. A
merge takes the less time the more there were before it, and ever more slowly less: the straight
lines between the samples lie a little above the truth.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np

from benchmarks.process import Estimate

SAMPLES = (0, *(2**power for power in range(12)))  # merges that are timed, besides the last


def merge_once(pieces: list[list[int]], new: int) -> list[list[int]]:
    """Count all pairs, replace the most frequent everywhere."""
    from numgpt.tokenizer.train import replace_pair

    counts: Counter[tuple[int, int]] = Counter()
    for piece in pieces:
        for pair in pairwise(piece):
            counts[pair] += 1
    best = max(counts, key=counts.__getitem__)
    return [replace_pair(piece, best, new) for piece in pieces]


def estimate(text: str, vocab_size: int) -> Estimate:
    import numgpt

    whole = numgpt.Tokenizer.train(text, vocab_size, special_tokens=())
    merges = len(whole.merges)
    samples = sorted({min(sample, merges - 1) for sample in SAMPLES} | {merges - 1})
    seconds = []
    for sample in samples:
        # The state that the algorithm is in after so many merges.
        known = {bytes([byte]) for byte in range(256)}
        known |= {left + right for left, right in whole.merges[:sample]}
        vocabulary = {token: id for token, id in whole.vocabulary.items() if token in known}
        tokenizer = numgpt.Tokenizer(vocabulary, whole.merges[:sample])
        pieces = [list(tokenizer.encode_ordinary(piece)) for piece in whole.pattern.split(text)]
        began = time.perf_counter()
        merge_once(pieces, len(whole.vocabulary))
        seconds.append(time.perf_counter() - began)
    return Estimate(float(np.interp(np.arange(merges), samples, seconds).sum()))
