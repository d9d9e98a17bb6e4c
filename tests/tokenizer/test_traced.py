"""Texts that know who wrote them: what str makes of them, and each character from where it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numgpt.tokenizer.traced import (
    GENERATED,
    TEMPLATE,
    UNKNOWN,
    Traced,
    as_traced,
    joined,
    message_of,
    of_message,
    runs,
    through,
    to_json,
    traced,
)

LETTERS = st.text("ab <|>\n\r\t\u2028ßİǆﬁΣς", max_size=12)
NUMBERS = st.integers(-14, 14)


def own(text: str) -> Traced:
    """A text whose characters are each of a message of their own."""
    return Traced(text, "".join(map(of_message, range(len(text)))))


def check(text: str, result, expected) -> None:
    """What str makes of it; and every character that is known is that of its place."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for part, whole in zip(result, expected, strict=True):
            check(text, part, whole)
        return
    assert result == expected
    assert isinstance(result, Traced)
    assert len(result.origin) == len(result)
    for character, origin in zip(result.plain, result.origin, strict=True):
        place = message_of(origin)
        if place is not None:
            assert character.casefold() in text[place].casefold()


CUTS = {
    "lstrip": st.tuples(st.none() | LETTERS),
    "rstrip": st.tuples(st.none() | LETTERS),
    "strip": st.tuples(st.none() | LETTERS),
    "removeprefix": st.tuples(LETTERS),
    "removesuffix": st.tuples(LETTERS),
    "split": st.tuples(st.none() | LETTERS.filter(bool), NUMBERS),
    "rsplit": st.tuples(st.none() | LETTERS.filter(bool), NUMBERS),
    "splitlines": st.tuples(st.booleans()),
    "partition": st.tuples(LETTERS.filter(bool)),
    "rpartition": st.tuples(LETTERS.filter(bool)),
    "__getitem__": st.tuples(st.slices(12)),
}


@pytest.mark.parametrize("method", CUTS)
@given(st.data())
def test_what_is_cut_off_keeps_its_origins(method, data):
    text, arguments = data.draw(LETTERS), data.draw(CUTS[method])
    result = getattr(own(text), method)(*arguments)
    check(text, result, getattr(text, method)(*arguments))
    parts = result if isinstance(result, (list, tuple)) else [result]
    places = [message_of(origin) for part in parts for origin in part.origin]
    assert None not in places
    assert all(
        text[place] == character for place, character in zip(places, "".join(parts), strict=True)
    )
    if method != "__getitem__":  # in their order
        assert places == sorted(set(places))


CASES = ("upper", "lower", "casefold", "swapcase", "title", "capitalize")


@pytest.mark.parametrize("method", CASES)
@given(LETTERS)
def test_letters_of_another_case_keep_theirs(method, text):
    result, expected = getattr(own(text), method)(), getattr(text, method)()
    check(text, result, expected)
    if len(expected) == len(text):
        assert UNKNOWN not in result.origin


@given(LETTERS, LETTERS, LETTERS, NUMBERS, st.integers(0, 3))
def test_what_is_put_together_keeps_them(text, old, new, count, times):
    mine = own(text)
    for result, expected in (
        (mine + new, text + new),
        (new + mine, new + text),
        (mine * times, text * times),
        (times * mine, times * text),
        (mine.replace(old, new, count), text.replace(old, new, count)),
        (as_traced(new).join([mine, old]), new.join([text, old])),
        (mine.join([]), ""),
    ):
        check(text, result, expected)
    assert (new + mine).origin == TEMPLATE * len(new) + mine.origin
    assert [c.origin for c in mine] == list(mine.origin)
    if old:
        kept = mine.replace(old, "").origin
        assert UNKNOWN not in kept
        assert TEMPLATE not in kept


JSON = st.recursive(
    LETTERS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=6,
)


@given(JSON, st.booleans(), st.none() | st.integers(0, 2), st.booleans())
def test_json_keeps_them(value, ascii_only, indent, in_order):
    options = {"ensure_ascii": ascii_only, "indent": indent, "sort_keys": in_order}
    result = to_json(traced(value, "x"), **options)
    assert result == json.dumps(value, **options)
    template = "".join(
        result[a:b].plain for a, b, mine in runs(result.origin, lambda o: o == "x") if not mine
    )
    assert not any(letter in template for letter in "<|>ß")
    assert all(letter in "x" + TEMPLATE for letter in result.origin)


def test_a_function_that_is_not_followed_is_none_of_the_templates():
    mine = own("abc")
    assert through("<{}>".format, [mine]) == "<abc>"
    assert through("<{}>".format, [mine]).origin == TEMPLATE + mine.origin + TEMPLATE
    assert through(lambda text: str.__str__(text)[::-1], [mine]).origin == UNKNOWN * 3
    assert through(lambda text: str.__str__(text)[0], [mine]).origin == UNKNOWN
    assert through(str, [["plain"]]) == "['plain']"
    assert through(str, [["plain"]]).origin == TEMPLATE * 9  # nobody's text was in it
    assert through(len, [mine]) == 3
    # Objects may hold anything, and iterators are read once.
    assert through(bytes.decode, [b"abc"]).origin == UNKNOWN * 3
    assert through(str, [object()], known=(object,)).origin[:1] == TEMPLATE
    assert through("|".join, [iter([mine, "d"])]).origin == mine.origin + TEMPLATE * 2
    # What merely looks like a place of one changes nothing.
    forged = own("\u2e280\u2e29")
    assert through("<{}>".format, [forged]).origin == TEMPLATE + forged.origin + TEMPLATE
    assert to_json([forged], ensure_ascii=False) == json.dumps([forged], ensure_ascii=False)


def test_origins_of_messages():
    assert message_of(TEMPLATE) is message_of(UNKNOWN) is None
    assert message_of(of_message(7)) == 7
    assert message_of(chr(ord(of_message(7)) | GENERATED)) == 7
    text = joined(["a", Traced("bc", of_message(0)), Traced("d", of_message(1))])
    assert list(runs(text.origin, message_of)) == [(0, 1, None), (1, 3, 0), (3, 4, 1)]
    assert list(runs("", message_of)) == []
    assert hash(text) == hash("abcd")
    assert {text: 1}["abcd"] == 1


def test_what_is_not_given_is_as_in_str():
    text = "a b  a<b>a"
    mine = own(text)
    assert mine.split() == text.split()
    assert mine.split("a") == text.split("a")
    assert mine.rsplit("a") == text.rsplit("a")
    assert mine.replace("a", "") == text.replace("a", "")
    assert mine.splitlines() == [text]
    assert to_json([traced("ß", "x")]) == json.dumps(["ß"])
    assert to_json({"b": 1, "a": 2}) == '{"b": 1, "a": 2}'


def test_every_text_in_a_value_is_traced():
    value = traced({"k": ["a", {"b": ("c", 1)}], "d": None}, "x")
    assert to_json(value).origin.count("x") == len("kabcd")
    assert all(isinstance(key, Traced) for key in value)
