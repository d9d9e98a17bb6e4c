"""Byte-pair encoding of one piece of text (Sennrich et al. 2016, arXiv:1508.07909, section 3.2).

The piece starts as its bytes, one token each. Again and again, of all adjacent pairs of tokens the
one that training found first is merged into one token, the leftmost where it occurs more than once,
until no pair is in the table.

Looking through all pairs for each merge takes quadratic time. For a word that is the fastest way,
but a piece can be long: a million letters in a row are one piece. There, the pairs wait in a heap,
ordered by rank and place, and the tokens form a linked list; a merge replaces two tokens and offers
the two new pairs at its sides: O(n log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import pairwise

NEVER = 1 << 62  # a rank above all others
SHORT = 16  # bytes; up to here looking through all pairs is faster than a heap


class MergeTable:
    """The merges of a vocabulary, in the order that training found them."""

    def __init__(self, merges: Iterable[tuple[int, int, int]]):
        """merges: (left token, right token, merged token)."""
        # pair -> rank, rank -> merged token, and the other way: token -> (rank, left, right)
        self._ranks: dict[tuple[int, int], int] = {}
        self._merged: list[int] = []
        self._origin: dict[int, tuple[int, int, int]] = {}
        self._whole: dict[int, bool] = {}
        for rank, (left, right, merged) in enumerate(merges):
            self._ranks.setdefault((left, right), rank)
            self._merged.append(merged)
            self._origin.setdefault(merged, (rank, left, right))
        self._in_order = all(  # every token was made before it was used
            self._origin[part][0] < rank
            for pair, rank in self._ranks.items()
            for part in pair
            if part in self._origin
        )

    def merge(self, tokens: list[int]) -> list[int]:
        """Merge a piece's tokens as far as the table goes; changes them, returns what is left."""
        return self._merge_short(tokens) if len(tokens) <= SHORT else self._merge_long(tokens)

    def _merge_short(self, tokens: list[int]) -> list[int]:
        rank_of, merged_of = self._ranks.get, self._merged
        ranks = [rank_of(pair, NEVER) for pair in pairwise(tokens)]  # of each token and the next
        while ranks and (rank := min(ranks)) < NEVER:
            place = ranks.index(rank)
            tokens[place] = merged = merged_of[rank]
            del tokens[place + 1], ranks[place]
            if place < len(ranks):
                ranks[place] = rank_of((merged, tokens[place + 1]), NEVER)
            if place > 0:
                ranks[place - 1] = rank_of((tokens[place - 1], merged), NEVER)
        return tokens

    def _merge_long(self, tokens: list[int]) -> list[int]:
        rank_of, merged_of, end = self._ranks.get, self._merged, len(tokens)
        following = list(range(1, end + 1))
        previous = list(range(-1, end - 1))
        heap = []
        for place, pair in enumerate(pairwise(tokens)):
            if (rank := rank_of(pair)) is not None:
                heap.append((rank, place, *pair))
        heapq.heapify(heap)

        while heap:
            rank, place, left, right = heapq.heappop(heap)
            after = following[place]
            if tokens[place] != left or after == end or tokens[after] != right:
                continue  # one of the two has been merged with another since
            merged = merged_of[rank]
            tokens[place], tokens[after] = merged, -1
            following[place] = beyond = following[after]
            before = previous[place]
            if beyond != end:
                previous[beyond] = place
                if (rank := rank_of((merged, tokens[beyond]))) is not None:
                    heapq.heappush(heap, (rank, place, merged, tokens[beyond]))
            if before >= 0 and (rank := rank_of((tokens[before], merged))) is not None:
                heapq.heappush(heap, (rank, before, tokens[before], merged))
        return [token for token in tokens if token >= 0]

    def makes_whole(self, token: int) -> bool:
        """True where merging the token's bytes is known to end at the token itself.

        Most words are tokens, and this spares merging them. In a table whose tokens were each made
        before they were used, merges happen in the order of their ranks, and the halves of a token
        come together unless a pair across their border is merged while both of its sides are there:
        the right edge x of the left half until x is merged to its left, the left edge y of the
        right half until y is merged to its right. (Of equal ranks, the leftmost pair goes first.)
        """
        if token not in self._whole:
            self._whole[token] = self._in_order and self._halves_meet(token)
        return self._whole[token]

    def _halves_meet(self, token: int) -> bool:
        if token not in self._origin:
            return True  # a byte
        rank, left, right = self._origin[token]
        if not (self.makes_whole(left) and self.makes_whole(right)):
            return False
        right_edges = list(self._edges(left, 2, rank))
        left_edges = list(self._edges(right, 1, rank))
        for x, x_ends in right_edges:
            for y, y_ends in left_edges:
                crossing = self._ranks.get((x, y), NEVER)
                if crossing < x_ends and crossing <= y_ends and (x, y) != (left, right):
                    return False
        return True

    def _edges(self, token: int, side: int, ends: int) -> Iterator[tuple[int, int]]:
        """The tokens at one edge (1: left, 2: right) of a token as it forms, and when each ends."""
        yield token, ends
        while token in self._origin:
            ends, token = self._origin[token][0], self._origin[token][side]
            yield token, ends
