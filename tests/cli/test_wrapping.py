"""Words on a terminal: broken between, not within, as they come."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numgpt.cli.wrapping import LONGEST_HELD, WordWrap, cells


def wrapped(text: str, width: int, pieces: random.Random | None = None) -> str:
    wrap, shown, place = WordWrap(width), [], 0
    while place < len(text):
        step = 1 if pieces is None else pieces.randint(1, 9)
        shown.append(wrap.push(text[place : place + step]))
        place += step
    return "".join([*shown, wrap.finish()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three", "one two\nthree"),
        ("one two  \nthree", "one two  \nthree"),
        ("exactly10!", "exactly10!"),
        ("12345 7890", "12345 7890"),
        ("12345 78901", "12345\n78901"),
        ("aa bb cc dd", "aa bb cc\ndd"),
        ("  indented text", "  indented\ntext"),
        (
            "```\nx = 1234567890 + 1\n```\none two three",
            "```\nx = 1234567890 + 1\n```\none two\nthree",
        ),
        ("漢字漢字漢字漢", "漢字漢字漢\n字漢"),
        ("e\u0301" * 10 + " x", "e\u0301" * 10 + "\nx"),
    ],
)
def test_breaks_between_words(text, expected):
    assert wrapped(text, 10) == expected


@given(st.text(alphabet="ab \n漢`", max_size=80), st.integers(1, 20), st.integers(0, 9))
def test_only_spaces_become_breaks(text, width, seed):
    shown = wrapped(text, width, random.Random(seed))
    assert "".join(shown.split()) == "".join(text.split())
    assert shown.count("\n") >= text.count("\n")
    longest = max(map(cells, text.replace("漢", " 漢 ").split()), default=0)
    if "```" not in text and longest <= width:
        assert all(cells(line.strip()) <= width for line in shown.split("\n"))


def test_a_word_without_an_end_is_shown_as_it_comes():
    wrap = WordWrap(80)
    shown = "".join(wrap.push("x") for _ in range(100))
    assert len(shown) > 100 - LONGEST_HELD - 2
