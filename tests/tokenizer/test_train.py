"""Learning a vocabulary: equal to Hugging Face's trainer, and to the algorithm's definition."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numgpt import CharTokenizer, Tokenizer
from numgpt.tokenizer.byte_alphabet import BYTES, from_printable, to_printable
from numgpt.tokenizer.pattern import PATTERNS, Pattern
from numgpt.tokenizer.reading import LINE_ENDS, MARKED, read_text


def hugging_face_trained(texts: list[str], vocab_size: int, min_frequency: int):
    import tokenizers

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def same_merges(ours: Tokenizer, theirs) -> None:
    expected = theirs.get_vocab()
    assert {to_printable(token): id for token, id in ours.vocabulary.items()} == expected


@pytest.mark.live("tokenizers")
def test_equals_hugging_faces_trainer_on_shakespeare(shakespeare):
    ours = Tokenizer.train(shakespeare, 1500, special_tokens=())
    same_merges(ours, hugging_face_trained([shakespeare], 1500, 2))


@pytest.mark.live("tokenizers")
@given(
    texts=st.lists(st.text("abc é\n1", max_size=60), min_size=1, max_size=5),
    frequency=st.integers(1, 3),
)
@settings(max_examples=60)
def test_equals_hugging_faces_trainer_on_any_text(texts, frequency):
    ours = Tokenizer.train(texts, 280, special_tokens=(), min_frequency=frequency)
    same_merges(ours, hugging_face_trained(texts, 280, frequency))


@given(text=st.text("ab ", max_size=80))
def test_follows_the_definition(text):
    """Count all pairs anew before each merge."""
    order = {bytes([byte]): id for id, byte in enumerate(BYTES)}
    words = [[bytes([byte]) for byte in piece.encode()] for piece in Pattern().split(text)]
    expected = []
    for _ in range(20):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts or max(counts.values()) < 2:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        expected.append(pair)
        order[pair[0] + pair[1]] = len(order)
        for word in words:
            index = 0
            while index < len(word) - 1:
                if (word[index], word[index + 1]) == pair:
                    word[index : index + 2] = [pair[0] + pair[1]]
                index += 1
    assert Tokenizer.train(text, 277).merges == expected


def test_the_vocabulary_has_the_size_asked_for():
    text = "one two three four five six seven eight nine ten " * 9
    tokenizer = Tokenizer.train(text, 270, special_tokens=["<|endoftext|>", "<|pad|>"])
    assert tokenizer.vocab_size == 270
    assert tokenizer.special_tokens == {"<|endoftext|>": 268, "<|pad|>": 269}
    assert Tokenizer.train("ab", 1000).vocab_size == 257  # nothing occurs twice


def test_special_tokens_in_the_text_are_not_learnt():
    tokenizer = Tokenizer.train("<|endoftext|>" * 50 + "aa aa aa", 400)
    assert b"end" not in b"".join(tokenizer.vocabulary)


@given(text=st.text("ab. ", max_size=60))
def test_special_tokens_cut_the_text(text):
    parts = Tokenizer.train([text, text], 300).merges
    assert Tokenizer.train(text + "<|endoftext|>" + text, 300).merges == parts


@pytest.mark.parametrize("special", [[""], ["a"], ["<|x|>", "<|x|>"]])
def test_refuses_special_tokens_that_can_not_be_told_apart(special):
    with pytest.raises(ValueError, match="special token"):
        Tokenizer.train("text", 300, special_tokens=special)


def test_texts_files_and_both_give_the_same(tmp_path, capsys):
    parts = ["the cat sat\n" * 30, "on the mat\n" * 20]
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, part in zip(files, parts, strict=True):
        file.write_text(part, newline="")
    merges = Tokenizer.train(parts, 290).merges
    assert Tokenizer.train(files, 290).merges == merges
    assert Tokenizer.train([files[0], parts[1]], 290, progress=True).merges == merges
    assert "learning merges" in capsys.readouterr().err
    assert Tokenizer.train(files[0], 290).merges == Tokenizer.train(parts[0], 290).merges


# A letter that NFC takes apart into a letter and a mark is among them (U+0958).
@given(
    text=st.text(st.sampled_from("ab \n\r\t1é'.\u3000\u0958\u0301½。"), max_size=200),
    size=st.integers(1, 40),
    name=st.sampled_from([*PATTERNS]),
)
@settings(max_examples=500)
def test_a_file_read_in_parts_is_tokenised_like_the_whole(tmp_path_factory, text, size, name):
    path = tmp_path_factory.mktemp("text") / "file.txt"
    path.write_text(text, encoding="utf-8", newline="")
    changes = Counter()
    parts = list(read_text(path, size, changes))
    assert ("\r" in text) == (changes == {LINE_ENDS: 1})
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(parts) == text
    pattern = Pattern(name)
    assert [piece for part in parts for piece in pattern.split(part)] == pattern.split(text)
    composed = [normalize("NFC", part) for part in parts]
    whole = pattern.split(normalize("NFC", text))
    assert [piece for part in composed for piece in pattern.split(part)] == whole


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_line_ends_and_byte_order_marks(tmp_path, size):
    path = tmp_path / "file.txt"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n\ufefffour".encode())
    with pytest.warns(UserWarning, match=r"file\.txt has a byte order mark.* and line ends other"):
        assert "".join(read_text(path, size)) == "one\ntwo\nthree\n\ufefffour"
    path.write_bytes("\ufeff".encode())
    changes = Counter()
    assert list(read_text(path, size, changes)) == []
    assert changes == {MARKED: 1}


def test_reading_names_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"abc\xff\xd8")
    with pytest.raises(ValueError, match=r"photo\.jpg is not UTF-8"):
        Tokenizer.train(path, 300)
    with pytest.raises(FileNotFoundError):
        Tokenizer.train(Path("absent.txt"), 300)


def test_characters():
    tokenizer = CharTokenizer.train(["banana", "é\n"])
    assert tokenizer.characters == ["\n", "a", "b", "n", "é"]
    assert tokenizer.encode("ban") == [2, 1, 3]
    assert tokenizer.decode([4, 0]) == "é\n"
    assert list(tokenizer.decode_stream([4, 1])) == ["é", "a", ""]


@given(data=st.binary(max_size=50))
def test_the_byte_alphabet_is_a_bijection(data):
    assert from_printable(to_printable(data)) == data
    assert to_printable(data).isprintable()


LINES = ["one two\r\n", "one two\n\n", "    one two\n", "one two ", "one\r\n"]
LINES += ['{"a":1}\n', "好。\n"]


@pytest.mark.parametrize("line", LINES)
def test_every_kind_of_text_is_read_in_parts(tmp_path, line):
    path = tmp_path / "file.txt"
    path.write_text(line * 1000, newline="")
    assert max(map(len, read_text(path, 500))) < 1000
