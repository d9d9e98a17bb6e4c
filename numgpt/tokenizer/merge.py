"""Byte-pair encoding of one piece of text (Sennrich et al. 2016, arXiv:1508.07909, section 3.2).

The piece starts as its bytes, one token each. Again and again, of all adjacent pairs of tokens the
one that was learnt first is merged into one token, the leftmost where it occurs more than once,
until no pair is in the table.

Looking through all pairs for each merge takes quadratic time, and a piece can be long: a million
letters in a row are one piece. So the pairs wait in a heap, ordered by rank and place, and the
tokens form a linked list; a merge replaces two tokens and offers the two new pairs at its sides:
O(n log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[int, int]
Ranks = Mapping[
    Pair, tuple[int, int]
]  # pair -> (rank, merged token); the lower rank was learnt first


def merge(tokens: list[int], ranks: Ranks) -> list[int]:
    """Merge a piece's tokens as far as the table goes.  Changes `tokens`, returns the result."""
    end = len(tokens)
    following = list(range(1, end + 1))
    previous = list(range(-1, end - 1))
    heap = []
    for place, pair in enumerate(pairwise(tokens)):
        if pair in ranks:
            rank, merged = ranks[pair]
            heap.append((rank, place, merged, *pair))
    heapq.heapify(heap)

    while heap:
        _, place, merged, left, right = heapq.heappop(heap)
        after = following[place]
        if tokens[place] != left or after == end or tokens[after] != right:
            continue  # one of the two has been merged with another since
        tokens[place], tokens[after] = merged, -1
        following[place] = beyond = following[after]
        before = previous[place]
        if beyond != end:
            previous[beyond] = place
            if (entry := ranks.get((merged, tokens[beyond]))) is not None:
                heapq.heappush(heap, (entry[0], place, entry[1], merged, tokens[beyond]))
        if before >= 0 and (entry := ranks.get((tokens[before], merged))) is not None:
            heapq.heappush(heap, (entry[0], before, entry[1], tokens[before], merged))
    return [token for token in tokens if token >= 0]
