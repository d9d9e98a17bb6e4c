"""Lesson 1: byte-pair encoding."""

from __future__ import annotations

from numgpt.lessons.checking import Exercise, Mistake

TABLE = {(97, 97): 256, (256, 98): 257, (98, 99): 258, (195, 169): 259, (32, 195): 260}


def _pairs(rng):
    texts = ["aaabdaaabac", "xyxyzz", "abcbc", "ab"]
    # Ties: by the order of numbers, left before right; what overlaps counts; and no circle.
    ties = [
        [9, 8, 9, 8, 1, 2, 1, 2],
        [2, 9, 50, 2, 1, 51, 2, 9, 52, 2, 1],
        [10, 3, 50, 9, 3, 51, 10, 3, 52, 9, 3],
        [2, 3, 50, 1, 9, 51, 2, 3, 52, 1, 9],
        [1, 2, 60, 2, 1, 61, 5, 6, 62, 5, 6],
        [1, 1, 1, 60, 5, 6, 61, 5, 6],
        [8, 70, 9, 8, 71, 9],
    ]
    return [
        *((list(text.encode()),) for text in texts),
        *((ids,) for ids in ties),
        (rng.integers(3, size=50).tolist(),),
    ]


def _merges(rng):
    return [
        ([1, 2, 3, 1, 2], (1, 2), 9),
        ([1, 1, 1], (1, 1), 9),
        ([11, 2, 1, 2, 1, 22], (1, 2), 9),
        ([5], (1, 1), 9),
        (rng.integers(2, size=40).tolist(), (1, 0), 9),
        (rng.integers(2, size=40).tolist(), (1, 1), 9),
    ]


def _trained(rng):
    return [(list(b"aaabdaaabac"), 3), (rng.integers(97, 100, size=80).tolist(), 6)]


def _encoded(rng):
    return [
        (list(b"aab"), TABLE),
        (list(b"aabc"), TABLE),
        (list(b"bcaab"), TABLE),
        (list(b"q"), TABLE),
        (list(b"abc"), {(98, 99): 256, (97, 98): 257}),
        (rng.integers(97, 100, size=60).tolist(), TABLE),
    ]


def _decoded(rng):
    return [([256, 98, 257], TABLE), ([260, 169, 32, 259], TABLE), ([97, 195, 98], TABLE)]


EXERCISES = (
    Exercise(
        "1.1",
        "most_frequent_pair",
        _pairs,
        (
            Mistake(
                "Counter(pairwise(ids))",
                "Counter(zip(ids[::2], ids[1::2]))",
                "count every pair of neighbours: the second id of a pair is the first of the next.",
            ),
            Mistake(
                "(-counts[pair], pair)",
                "(counts[pair], pair)",
                "that is the rarest pair: the most frequent one is asked for.",
            ),
            Mistake(
                "(-counts[pair], pair)",
                "-counts[pair]",
                "of equally frequent pairs take the one with the lower ids, not the one that was"
                " met first.",
            ),
        ),
    ),
    Exercise(
        "1.2",
        "merge",
        _merges,
        (
            Mistake(
                "place += 2",
                "place += 1",
                "the second id of a pair is used up with the first: go on behind both.",
            ),
            Mistake(
                "place < len(ids):",
                "place < len(ids) - 1:",
                "the last id is lost where it is not the end of a pair.",
            ),
            Mistake(
                "merged, place = [], 0",
                "ids = ids[::-1]; pair = pair[::-1]; merged, place = [], 0",
                "is the result turned round? Pairs are replaced from the left, and stay in order.",
            ),
            Mistake(
                "merged.append(new)",
                "merged += pair",
                "the pair's two ids are still there: put the new id in their place.",
            ),
        ),
    ),
    Exercise(
        "1.3",
        "train",
        _trained,
        (
            Mistake(
                "range(256, 256 + merges)",
                "range(merges)",
                "the ids below 256 are the bytes: the first new one is 256.",
            ),
            Mistake(
                "ids = merge(ids, pair, new)",
                "merge(ids, pair, new)",
                "each pair is counted in the text as the merges before have left it: keep what"
                " merge returns.",
            ),
            Mistake(
                "table[pair] = new",
                "table[new] = pair",
                "the keys are the pairs, and the values their new ids.",
            ),
        ),
    ),
    Exercise(
        "1.4",
        "encode",
        _encoded,
        (
            Mistake(
                'min(pairwise(ids), key=lambda pair: table.get(pair, float("inf")))',
                "next((p for p in pairwise(ids) if p in table), (None, None))",
                "you merge the leftmost pair that is in the table: it has to be the one that"
                " training found first, wherever it stands.",
            ),
            Mistake(
                'min(pairwise(ids), key=lambda pair: table.get(pair, float("inf")))',
                "max(pairwise(ids), key=lambda pair: table.get(pair, -1))",
                "you merge the pair that training found last: the one that it found first comes"
                " first.",
            ),
            Mistake(
                "ids = merge(ids, pair, table[pair])",
                "return merge(ids, pair, table[pair])",
                "that is one merge: go on until no pair is in the table.",
            ),
        ),
    ),
    Exercise(
        "1.5",
        "decode",
        _decoded,
        (
            Mistake(
                'b"".join(meaning[id] for id in ids).decode("utf-8", errors="replace")',
                '"".join(meaning[id].decode("utf-8", errors="replace") for id in ids)',
                "a character may be several bytes, and an id may hold only some of them: what does"
                " half an é decode to?",
            ),
            Mistake(
                'decode("utf-8", errors="replace")',
                'decode("latin-1")',
                "that reads each byte as a character: the text is UTF-8, where an é has two.",
            ),
            Mistake(
                'errors="replace"',
                'errors="ignore"',
                "bytes that are no character are lost without a sign: show them, as"
                ' errors="replace" does.',
            ),
        ),
    ),
)
