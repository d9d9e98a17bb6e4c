"""Every known pattern: cut, encoded, saved and loaded as Hugging Face's tokenizers do it."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from numgpt import Tokenizer
from numgpt.tokenizer import load_tokenizer
from numgpt.tokenizer.byte_alphabet import from_printable, to_printable
from numgpt.tokenizer.pattern import PATTERNS, Pattern

# What is assigned in this Python's Unicode; newer characters are letters to one library and nothing
# to another.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
TRAPS = [
    *(" ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", " \n ", "\u00a0", "\u3000", "\u2028", "\x85"),
    *("'s", "'S", "'ll", "'LL", "'Re", "'ve", "'ſ", "'", "’re", "\x1c", "\x00", "\x0b"),
    *("1", "12", "1234567", "½", "٣", "²", "Ⅷ", "一", "x2", "2x", " 7", "v1.10"),
    *("xqz", "xqza", " wordy", "é好"),
    *("!", "...", "_", "(", " - ", "?!\n", "。", "—", "<|im_end|", "<|user|"),
    *("word", " the", "é", "e\u0301", "ß", "\u0301", "\u0958", "Å", "한국어", "ᄒ\u1161ᆫ", "好的"),
    *("👩\u200d👩\u200d👧", "🇨🇭", "🐈", "İ", "ꙮ"),
]
TEXT = st.lists(
    st.text(ASSIGNED, max_size=6) | st.sampled_from(TRAPS) | st.text(" \n\r\t", max_size=5),
    max_size=14,
).map("".join)
ASCII = st.lists(
    st.text(st.characters(max_codepoint=127), max_size=6)
    | st.sampled_from([part for part in TRAPS if part.isascii()]),
    max_size=14,
).map("".join)

LEARNT_FROM = (
    "Wörter, words & 1234 numbers in 2024; it's what THEY'LL say, don't they?\n\n"
    "\tif (x == 12) {\r\n        return 'it''s';\r\n}\n\n\n好的, e\u0301te\u0301 été  \n" * 20
)
SPECIAL = ["<|endoftext|>", "<|begin|>", "<|user|>"]
MISSING = bytes([0x04, 0x1D, 0xF0, 0xFF])  # as in SmolLM2's vocabulary, and one of an emoji's
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
# What goes with each pattern where it is used; gpt2 twice, since transformers has a class for it.
MODELS = {
    "gpt2": {},
    "gpt2, composed": {"normalizer": "NFC", "ignore_merges": True},
    "llama3": {"ignore_merges": True, "bos_token": "<|begin|>", "add_bos_token": True},
    "qwen2": {"normalizer": "NFC", "bos_token": "<|begin|>", "chat_template": TEMPLATE},
    "smollm": {"bos_token": "<|begin|>", "eos_token": "<|user|>", "chat_template": TEMPLATE},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> a tokenizer like one in use, and the directory it was saved to."""
    result = {}
    for name, options in MODELS.items():
        pattern = name.split(",")[0]
        learnt = Tokenizer.train(LEARNT_FROM, 420, SPECIAL, pattern=pattern)
        vocabulary = dict(learnt.vocabulary)
        merges = list(learnt.merges)
        if options.get("ignore_merges"):
            # Tokens that no merge makes, and one where "xqz" ends as "x", "qz".
            vocabulary |= {b" wordy": 420, "é好".encode(): 421, b"\n\n\t\n": 422}
            vocabulary |= {b"qz": 423, b"xq": 424, b"xqz": 425}
            merges += [(b"q", b"z"), (b"x", b"q"), (b"xq", b"z")]
        if pattern == "smollm":
            for byte in MISSING:
                del vocabulary[bytes([byte])]
        tokenizer = Tokenizer(vocabulary, merges, learnt.special_tokens, pattern, **options)
        directory = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save_pretrained(directory)
        result[name] = tokenizer, directory
    return result


@pytest.fixture(scope="module")
def theirs(saved):
    """name -> what Hugging Face's tokenizers make of our file."""
    import tokenizers

    return {
        name: tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        for name, (_, directory) in saved.items()
    }


def their_pre_tokenizer(name: str):
    """As the model's authors put it together."""
    import tokenizers

    steps = tokenizers.pre_tokenizers
    if name == "gpt2":
        return steps.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        first = steps.Digits(individual_digits=True)
        return steps.Sequence([first, steps.ByteLevel(add_prefix_space=False)])
    split = steps.Split(tokenizers.Regex(PATTERNS[name]), "isolated")
    return steps.Sequence([split, steps.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.live("tokenizers")
@pytest.mark.parametrize("name", PATTERNS)
@given(text=TEXT)
@settings(max_examples=300)
def test_cuts_where_hugging_face_does(name, text):
    pieces = their_pre_tokenizer(name).pre_tokenize_str(text)
    assert Pattern(name).split(text) == [from_printable(piece).decode() for piece, _ in pieces]


@pytest.mark.live("tokenizers")
@pytest.mark.parametrize("name", PATTERNS)
def test_every_assigned_character_is_cut_alike(name):
    """Each between letters, after a space, before a digit and a sign."""
    text = "".join(
        f"a{character}b {character}!{character}1 '{character}\n"
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) not in ("Cs", "Cn", "Co")
        and not "\u3400" < character < "\ud7a0"  # ideographs and syllables: letters, all alike
    )
    pieces = their_pre_tokenizer(name).pre_tokenize_str(text)
    assert [to_printable(piece.encode()) for piece in Pattern(name).split(text)] == [
        piece for piece, _ in pieces
    ]


@pytest.mark.parametrize("name", PATTERNS)
@examples(150, 500)
def test_ascii_and_unicode_patterns_agree(name, examples):
    pattern = Pattern(name)

    @given(text=ASCII)
    @settings(max_examples=examples)
    def check(text):
        assert pattern.split(text) == pattern._unicode.findall(text)
        assert "".join(pattern.split(text)) == text

    check()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("text", ["a", " ", "\n", " \n", "1", "!", "'", "é", "\u3000", "½", "'S"])
def test_no_pattern_takes_long(name, text):
    text *= 200_000
    assert "".join(Pattern(name).split(text)) == text
    assert "".join(Pattern(name)._unicode.findall(text)) == text


@pytest.mark.live("tokenizers")
@pytest.mark.parametrize("model", MODELS)
@given(text=TEXT)
@settings(max_examples=300)
def test_hugging_face_reads_our_files_with_equal_ids(saved, theirs, model, text):
    ours, hugging_face = saved[model][0], theirs[model]
    ids = ours.encode(text, allowed_special="all")
    assert hugging_face.encode(text, add_special_tokens=False).ids == ids
    ids = ours.encode(text, allowed_special="all", add_special_tokens=True)
    assert hugging_face.encode(text).ids == ids


@pytest.mark.parametrize("model", MODELS)
@given(text=TEXT)
@settings(max_examples=200)
def test_decode_inverts_encode(saved, model, text):
    tokenizer = saved[model][0]
    expected = unicodedata.normalize("NFC", text) if tokenizer.normalizer else text
    kept = expected.encode().translate(None, MISSING if model == "smollm" else b"")
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == kept


def attributes(tokenizer: Tokenizer) -> dict:
    names = "vocabulary merges special_tokens normalizer ignore_merges bos_token eos_token"
    names += " add_bos_token chat_template bos_token_id eos_token_id vocab_size lacks_bytes_of_text"
    return {name: getattr(tokenizer, name) for name in names.split()} | {
        "pattern": tokenizer.pattern.name
    }


@pytest.mark.parametrize("model", MODELS)
def test_save_then_load_is_the_identity(saved, tmp_path, model):
    tokenizer, directory = saved[model]
    loaded = load_tokenizer(directory)
    assert attributes(loaded) == attributes(tokenizer)
    assert loaded.lacks_bytes_of_text == (model == "smollm")
    loaded.save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in directory.iterdir()
    }


@pytest.mark.live("transformers")
@pytest.mark.parametrize("model", MODELS)
def test_transformers_loads_the_directory(saved, model):
    import transformers

    ours, directory = saved[model]
    hugging_face = transformers.AutoTokenizer.from_pretrained(directory)
    assert hugging_face.bos_token_id == ours.bos_token_id
    assert hugging_face.eos_token_id == ours.eos_token_id
    assert hugging_face.chat_template == ours.chat_template
    assert len(hugging_face) == len(ours.vocabulary) + len(ours.special_tokens)
    for text in ("", "xqz wordy words, they'LL say: 2024 e\u0301té\n\n\t\n x", "".join(TRAPS)):
        plain = hugging_face(text, add_special_tokens=False)["input_ids"]
        assert plain == ours.encode(text, allowed_special="all")
        whole = hugging_face(text)["input_ids"]
        assert whole == ours.encode(text, allowed_special="all", add_special_tokens=True)


@pytest.mark.live("transformers")
@pytest.mark.parametrize(
    ("model", "model_type"),
    [("gpt2", "gpt2"), ("llama3", "llama"), ("smollm", "llama"), ("qwen2", "qwen2")],
)
def test_transformers_loads_it_beside_a_model(saved, tmp_path, model, model_type):
    """There, what config.json says of the model has a say in which class it chooses."""
    import transformers

    ours = saved[model][0]
    ours.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    hugging_face = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "".join(TRAPS)
    expected = ours.encode(text, allowed_special="all", add_special_tokens=True)
    assert hugging_face(text)["input_ids"] == expected


def test_an_unknown_pattern_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'o200k' is not known.*gpt2, llama3, qwen2, smollm"):
        Pattern("o200k")
