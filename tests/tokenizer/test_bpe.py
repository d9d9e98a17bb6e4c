"""Byte-level BPE against tiktoken, on real text, on any Unicode, and where it could be slow."""

import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared

from numgpt import Tokenizer
from numgpt.tokenizer import StreamDecoder
from numgpt.tokenizer.merge import MergeTable
from numgpt.tokenizer.pattern import GPT2_PATTERN

VALID = st.characters(exclude_categories=["Cs"])
TRAPS = [
    *(" ", "   ", "\n", "\n\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028", "\x00", "\x1c", "\x85"),
    *("'s", "'LL", "’re", "123", "٣", "½", "Ⅷ", "_", "...", "é", "e\u0301", "ß", "한국어"),
    *("👩\u200d👩\u200d👧", "🇨🇭"),
]
# Text with what trips tokenizers: runs of spaces, newlines, digits, contractions, emoji, combining
# marks.
TRICKY = st.lists(
    st.one_of(
        st.text(VALID, max_size=8),
        st.sampled_from(TRAPS),
        st.integers(1, 40).map(lambda n: " " * n),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="session")
def tiktoken_gpt2():
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(
        str(shared("gpt2", "vocab.bpe")), str(shared("gpt2", "encoder.json"))
    )
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    """A vocabulary learnt here, for tests that need no particular one."""
    return Tokenizer.train("the cat sat on the mat; the dog sat on the log.\n" * 20, 300)


@pytest.mark.live("tiktoken")
def test_equals_tiktoken_on_shakespeare(gpt2_tokenizer, tiktoken_gpt2, shakespeare):
    assert gpt2_tokenizer.encode(shakespeare) == tiktoken_gpt2.encode_ordinary(shakespeare)
    assert gpt2_tokenizer.decode(tiktoken_gpt2.encode_ordinary(shakespeare)) == shakespeare


@pytest.mark.live("tiktoken")
def test_equals_tiktoken_on_every_code_point(gpt2_tokenizer, tiktoken_gpt2):
    for code_point in range(sys.maxunicode + 1):
        if not 0xD800 <= code_point <= 0xDFFF:
            character = chr(code_point)
            expected = tiktoken_gpt2.encode_ordinary(character)
            assert gpt2_tokenizer.encode(character) == expected, hex(code_point)


@pytest.mark.live("tiktoken")
@given(text=TRICKY)
@settings(max_examples=300)
def test_equals_tiktoken_on_any_text(gpt2_tokenizer, tiktoken_gpt2, text):
    assert gpt2_tokenizer.encode(text) == tiktoken_gpt2.encode_ordinary(text)
    with_special = text + "<|endoftext|>" + text
    assert gpt2_tokenizer.encode(with_special) == tiktoken_gpt2.encode_ordinary(with_special)
    assert gpt2_tokenizer.encode(with_special, allowed_special="all") == tiktoken_gpt2.encode(
        with_special, allowed_special="all"
    )


@given(text=TRICKY)
@settings(max_examples=200)
def test_decode_inverts_encode(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.decode_bytes(np.array(ids, np.int64)) == text.encode()


@given(data=st.binary(max_size=60))
def test_any_bytes_decode(trained, data):
    ids = [trained.vocabulary[bytes([byte])] for byte in data]
    assert trained.decode_bytes(ids) == data
    assert trained.decode(ids) == data.decode("utf-8", errors="replace")


@given(data=st.binary(max_size=40), text=TRICKY)
def test_a_stream_never_emits_half_a_character(trained, data, text):
    ids = trained.encode(text) + [trained.vocabulary[bytes([byte])] for byte in data]
    pieces = list(trained.decode_stream(ids))
    assert "".join(pieces) == trained.decode(ids)
    for piece in trained.decode_stream(trained.encode(text)):
        assert "\ufffd" not in piece or "\ufffd" in text


def test_a_stream_holds_a_character_back_until_it_is_whole(trained):
    decoder = StreamDecoder(trained)
    first, second, third = (trained.vocabulary[bytes([byte])] for byte in "€".encode())
    assert [decoder.push(first), decoder.push(second), decoder.push(third)] == ["", "", "€"]
    assert decoder.push(first) + decoder.finish() == "\ufffd"


@pytest.mark.parametrize("character", ["a", " ", "\n", "0", "é", "!"])
def test_many_equal_characters_take_a_second(gpt2_tokenizer, character):
    began = time.perf_counter()
    ids = gpt2_tokenizer.encode(character * 100_000)
    # Quadratic time would be ten minutes: this is no measurement of speed.
    assert time.perf_counter() - began < 60
    assert gpt2_tokenizer.decode(ids) == character * 100_000


@given(letters=st.text("ab", min_size=1, max_size=200))
def test_merges_in_the_order_they_were_learnt(letters):
    """Against the definition: of all pairs the one learnt first, the leftmost where it recurs."""
    tokenizer = Tokenizer.train(["abababab" * 3 + " aabb aab bba abba " * 5], 270)
    tokens = [bytes([byte]) for byte in letters.encode()]
    while True:
        ranked = [
            (tokenizer.merges.index(pair), place)
            for place, pair in enumerate(pairwise(tokens))
            if pair in tokenizer.merges
        ]
        if not ranked:
            break
        place = min(ranked)[1]
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    assert [tokenizer.token_to_bytes(id) for id in tokenizer.encode(letters)] == tokens


def test_special_tokens_are_text_unless_allowed(gpt2_tokenizer):
    text = "a<|endoftext|>b"
    assert 50256 not in gpt2_tokenizer.encode(text)
    assert gpt2_tokenizer.decode(gpt2_tokenizer.encode(text)) == text
    ids = gpt2_tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    assert ids == [64, 50256, 65]
    assert gpt2_tokenizer.decode(ids) == text
    assert gpt2_tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert gpt2_tokenizer.eos_token_id == 50256
    assert gpt2_tokenizer.token_to_bytes(50256) == b"<|endoftext|>"
    assert gpt2_tokenizer.vocab_size == 50257
    with pytest.raises(ValueError, match=r"<\|pad\|>.*endoftext"):
        gpt2_tokenizer.encode(text, allowed_special={"<|pad|>"})


def test_the_longer_of_two_special_tokens_wins():
    tokenizer = Tokenizer.train("x", 258, special_tokens=["<a>", "<a><b>"])
    assert tokenizer.encode("<a><b><a>", allowed_special="all") == [257, 256]


def test_returns_an_array_when_asked(trained):
    array = trained.encode("the cat", return_tensors="np")
    assert array.dtype == np.int64
    assert array.tolist() == [trained.encode("the cat")]
    assert trained.encode("", return_tensors="np").shape == (1, 0)
    assert trained.encode_batch(["the", "cat"]) == [trained.encode("the"), trained.encode("cat")]
    with pytest.raises(ValueError, match="'pt'"):
        trained.encode("x", return_tensors="pt")


def test_what_begins_and_ends_a_text(trained):
    assert (trained.bos_token, trained.bos_token_id, trained.add_bos_token) == (None, None, False)
    assert trained.encode("the", add_special_tokens=True) == trained.encode("the")
    special = {"<|endoftext|>": 400, "<s>": 401, "</s>": 402}
    tokenizer = Tokenizer(
        trained.vocabulary, trained.merges, special, bos_token="<s>", add_bos_token=True
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (401, 400)
    assert tokenizer.encode("the", add_special_tokens=True) == [401, *trained.encode("the")]
    assert tokenizer.encode("", add_special_tokens=True, return_tensors="np").tolist() == [[401]]
    assert tokenizer.encode("the") == trained.encode("the")
    ended = Tokenizer(trained.vocabulary, trained.merges, special, eos_token="</s>")
    assert ended.eos_token_id == 402
    bare = Tokenizer(trained.vocabulary, trained.merges)
    assert (bare.eos_token, bare.eos_token_id) == (None, None)


def test_a_piece_that_is_a_token_needs_no_merge():
    """As Llama 3 has them: with ignore_merges, and then only for the whole piece."""
    vocabulary = {bytes([byte]): byte for byte in range(256)}
    vocabulary |= {b"bc": 256, b"ab": 257, b"abc": 258, b"abcb": 259}
    merges = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    merged = [257, 32, 97, 256, 32, 97, 256, 100]
    assert Tokenizer(vocabulary, merges).encode("ab abc abcd") == merged
    tokenizer = Tokenizer(vocabulary, merges, ignore_merges=True)
    assert tokenizer.encode("abc") == [258]
    assert tokenizer.encode("abcb") == [259]
    assert tokenizer.encode("ab abc abcd") == merged


def test_a_byte_that_is_missing_is_left_out(trained):
    absent = {b"\x04", "🐈".encode()[:1], b"\xff"}
    vocabulary = {t: i for t, i in trained.vocabulary.items() if t not in absent}
    tokenizer = Tokenizer(vocabulary, trained.merges)
    assert tokenizer.lacks_bytes_of_text
    assert not trained.lacks_bytes_of_text
    for text in ("the\x04cat", "th\x04e", "🐈", "\x04", "the 🐈 sat"):
        kept = [bytes([byte]) for byte in text.encode() if bytes([byte]) not in absent]
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == b"".join(kept)
    assert tokenizer.encode("th\x04e") == trained.encode("th") + trained.encode("e")
    never = {bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    vocabulary = {t: i for t, i in trained.vocabulary.items() if t not in never}
    assert not Tokenizer(vocabulary, trained.merges).lacks_bytes_of_text


def test_words_that_are_tokens_equal_their_merges(gpt2_tokenizer):
    """The short cut for pieces that are tokens never changes a result, and serves nearly all."""
    taken = 0
    for token, id in gpt2_tokenizer.vocabulary.items():
        if gpt2_tokenizer._table.makes_whole(id):
            byte_ids = [gpt2_tokenizer._byte_ids[byte] for byte in token]
            assert gpt2_tokenizer._table.merge(byte_ids) == [id], token
            taken += 1
    assert taken > 0.99 * len(gpt2_tokenizer.vocabulary)


MERGES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=14)


@given(choices=MERGES, in_order=st.booleans(), piece=st.text("abc", max_size=40))
@settings(max_examples=500)
def test_the_short_cut_and_both_ways_to_merge_agree_for_any_table(choices, in_order, piece):
    """Tables of merges as no training would make them: of "a", "b", "c" and what they become."""
    tokens = [b"a", b"b", b"c"]
    merges = []
    for left, right in choices:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if pair not in merges and len(pair[0] + pair[1]) <= 12:
            merges.append(pair)
            if pair[0] + pair[1] not in tokens:
                tokens.append(pair[0] + pair[1])
    if not in_order:
        merges.reverse()
    ids = {token: number for number, token in enumerate(tokens)}
    table = MergeTable([(ids[left], ids[right], ids[left + right]) for left, right in merges])
    in_bytes = [ids[bytes([byte])] for byte in piece.encode()]
    assert table._merge_short(in_bytes.copy()) == table._merge_long(in_bytes.copy())
    for token in tokens:
        if table.makes_whole(ids[token]):
            assert table.merge([ids[bytes([byte])] for byte in token]) == [ids[token]]
