"""What tokenizers' files say beside the vocabulary: older layouts, flags, tokens with a part; what
transformers makes of the same files is what we do."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import refused, talk

from numgpt import Tokenizer
from numgpt.tokenizer import load_tokenizer

TEXT = "Hello world, they said it: abc abc abc xabc. The cafe\u0301s are open, <x> says é.\n" * 9
PAIR, SINGLE = ("vocab.json", "merges.txt"), ("tokenizer.json",)
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TURN = "<|im_end|>"


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([TEXT], 310, special_tokens=["<|endoftext|>"])


@pytest.fixture
def directory(trained, tmp_path):
    """Writes the tokenizer in one or two files, and others beside them."""

    def write(names=PAIR, edit=None, **beside):
        trained.save_pretrained(tmp_path)
        for path in list(tmp_path.iterdir()):
            if path.name not in names:
                path.unlink()
        if edit is not None:
            path = tmp_path / "tokenizer.json"
            whole = json.loads(path.read_text("utf-8"))
            edit(whole)
            path.write_text(json.dumps(whole), "utf-8")
        files = {"config": "tokenizer_config", "special": "special_tokens_map"}
        files["added"] = "added_tokens"
        for name, value in beside.items():
            (tmp_path / f"{files[name]}.json").write_text(json.dumps(value), "utf-8")
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        return tmp_path

    return write


def added(token: str, id: int, **flags):
    """Puts a token into tokenizer.json's list."""
    return lambda whole: whole["added_tokens"].append(
        {"id": id, "content": token, "special": False} | FLAGS | flags
    )


def normalizers(*steps: dict):
    """Puts a sequence of these into tokenizer.json."""
    sequence = {"type": "Sequence", "normalizers": list(steps)}
    return lambda whole: whole.update(normalizer=sequence)


FIRST = 300
FAST, GPT2 = {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "GPT2Tokenizer"}
AS_ENTRY = {"content": TURN} | FLAGS
CASES = {
    "an added token": (PAIR, {"added": {TURN: FIRST}}),
    "… that ends a text": (PAIR, {"added": {TURN: FIRST}, "special": {"eos_token": TURN}}),
    "… by the config": (PAIR, {"added": {TURN: FIRST}, "config": GPT2 | {"eos_token": TURN}}),
    "the map before the config": (
        PAIR,
        {
            "added": {TURN: FIRST},
            "special": {"eos_token": AS_ENTRY, "pad_token": TURN},
            "config": GPT2 | {"eos_token": "<|endoftext|>"},
        },
    ),
    "several": (PAIR, {"added": {TURN: FIRST, "<a>": FIRST + 1}, "special": {"pad_token": "<a>"}}),
    "beside one file": (
        SINGLE,
        {"added": {TURN: FIRST}, "special": {"eos_token": TURN}, "config": FAST},
    ),
    "tokens that are listed come first": (
        SINGLE,
        {
            "special": {"eos_token": TURN},
            "config": FAST
            | {"eos_token": "<|endoftext|>"}
            | {"added_tokens_decoder": {str(FIRST): AS_ENTRY | {"special": True}}},
        },
    ),
    "a padding token that is nowhere": (PAIR, {"special": {"pad_token": "[PAD]"}}),
    "a space before a text": (PAIR, {"config": GPT2 | {"add_prefix_space": True}}),
    "… by the class": (SINGLE, {"config": GPT2 | {"add_prefix_space": True}}),
    "… not by another class": (SINGLE, {"config": FAST | {"add_prefix_space": True}}),
    "… by the file": (
        SINGLE,
        {
            "config": FAST | {"add_prefix_space": False},
            "edit": lambda whole: whole["pre_tokenizer"].update(add_prefix_space=True),
        },
    ),
    "a token that merges make": (SINGLE, {"config": FAST, "edit": added("abc", 257)}),
    "an end that is not special": (
        SINGLE,
        {"config": FAST | {"eos_token": TURN}, "edit": added(TURN, FIRST)},
    ),
    "a padding token in the config": (SINGLE, {"config": FAST | {"pad_token": "[PAD]"}}),
    "no normalizers": (SINGLE, {"config": FAST, "edit": normalizers()}),
    "one normalizer": (SINGLE, {"config": FAST, "edit": normalizers({"type": "NFC"})}),
}
SAID = [
    "Hello world<|im_end|>x abc",
    " abc<|im_end|> abc<|endoftext|>Hello",
    "cafe\u0301 é [PAD]<a>",
    "",
    " ",
]


@pytest.mark.live("transformers", "torch")
@pytest.mark.parametrize("name", CASES)
def test_what_files_say_is_what_transformers_does(directory, trained, tmp_path, name):
    import transformers

    names, beside = CASES[name]
    path = directory(names, **beside)
    assert trained.vocabulary[b"abc"] == 257  # as the cases have it
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    check_like(load_tokenizer(path), theirs)
    # … and what we save means the same, to us and to transformers.
    load_tokenizer(path).save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text('{"model_type": "gpt2"}')
    check_like(load_tokenizer(tmp_path / "again"), theirs)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    check_like(load_tokenizer(path), again)
    assert again.pad_token == theirs.pad_token


def check_like(ours: Tokenizer, theirs) -> None:
    assert ours.vocab_size == len(theirs)
    for text in SAID:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text, allowed_special="all") == expected
        special = [t for t in ours.special_tokens if t in text]
        if not special:
            assert ours.encode(text) == expected
        assert ours.decode(expected) == theirs.decode(expected, clean_up_tokenization_spaces=False)
    assert ours.named_tokens.get("pad_token") == theirs.pad_token
    if theirs.eos_token is not None and ours.eos_token is not None:  # (else a class's default)
        assert ours.eos_token_id == theirs.eos_token_id
    if theirs.pad_token_id is not None:
        assert ours.pad_token_id == theirs.pad_token_id


def test_an_end_in_a_file_of_its_own_is_heeded(directory):
    """Without it decode raised, and generation never ended."""
    tokenizer = load_tokenizer(directory(added={TURN: FIRST}, special={"eos_token": TURN}))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (TURN, FIRST)
    assert tokenizer.special_tokens == {"<|endoftext|>": 299, TURN: FIRST}
    assert tokenizer.decode([39, FIRST]) == "H" + TURN
    assert tokenizer.decode([39, FIRST], skip_special_tokens=True) == "H"


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"special": {"eos_token": 5}}, r"special_tokens_map\.json: eos_token=5"),
        ({"special": {"additional_special_tokens": 5}}, r"special_tokens_map\.json: additional"),
        ({"special": []}, r"special_tokens_map\.json: expected a JSON object"),
        ({"added": {TURN: "x"}}, r"added_tokens\.json: "),
        ({"added": [TURN]}, r"added_tokens\.json: expected a JSON object"),
        ({"added": {TURN: 5}}, "one id to two tokens"),
        ({"special": {"eos_token": "<nowhere>"}}, "eos_token='<nowhere>' is not one"),
        ({"config": {"add_prefix_space": "yes"}}, "add_prefix_space='yes'"),
        ({"config": {"extra_special_tokens": 5}}, r"tokenizer_config\.json: extra_special_tokens"),
        ({"config": {"pad_token": 5}}, r"tokenizer_config\.json: pad_token=5"),
    ],
)
def test_what_is_wrong_in_them_is_named(directory, beside, message):
    refused(lambda: load_tokenizer(directory(**beside)), message)


def test_settings_are_kept(directory, tmp_path):
    config = GPT2 | {"pad_token": "<|endoftext|>", "padding_side": "left", "model_max_length": 77}
    tokenizer = load_tokenizer(directory(config=config))
    tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text("utf-8"))
    assert saved.items() >= (config.items() - GPT2.items())
    assert load_tokenizer(tmp_path / "again").settings.items() >= tokenizer.settings.items()
    assert tokenizer.pad_token_id == 299


@pytest.mark.live("transformers", "torch")
def test_parts_of_their_own_are_named_in_templates(directory, tmp_path):
    """image_token and its like: a chat template reads them."""
    import transformers

    pytest.importorskip("jinja2")
    config = FAST | {"image_token": "<image>", "pad_token": "<|endoftext|>", "chat_template": ""}
    config["extra_special_tokens"] = {"audio_token": "<audio>"}
    config["chat_template"] = "{{ image_token }}{{ audio_token }}{{ pad_token }}"
    path = directory(SINGLE, config=config)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    expected = theirs.apply_chat_template(talk("Hi"), tokenize=False)
    assert expected == "<image><audio><|endoftext|>"
    load_tokenizer(path).save_pretrained(tmp_path / "again")
    for ours in (load_tokenizer(path), load_tokenizer(tmp_path / "again")):
        assert ours.apply_chat_template(talk("Hi"), tokenize=False) == expected
        assert ours.vocab_size == len(theirs)
        ids = ours.encode(expected, allowed_special="all")
        assert ours.decode(ids) == expected
        assert len(ids) == 3


def test_a_special_token_that_merges_make_is_not_made_of_text(trained):
    """… unless it is asked for: a page that spells it does not end there."""
    reserved = Tokenizer(trained.vocabulary, trained.merges, trained.special_tokens | {"abc": 257})
    assert trained.encode("abc") == [257]
    assert reserved.encode("abc", allowed_special="all") == [257]
    assert 257 not in reserved.encode("abc abc xabc cabc")
    assert reserved.decode(reserved.encode("abc abc xabc cabc")) == "abc abc xabc cabc"
    assert Tokenizer(trained.vocabulary, trained.merges, added_tokens={"abc": 257}).encode(
        "xabcx"
    ) == [*trained.encode("x"), 257, *trained.encode("x")]
    with pytest.raises(ValueError, match="'abc' is empty, or an ordinary token with another id"):
        Tokenizer(trained.vocabulary, trained.merges, {"abc": 500})


def test_a_text_that_continues_gets_no_space(trained):
    spaced = Tokenizer(trained.vocabulary, trained.merges, {"<e>": 400}, add_prefix_space=True)
    assert spaced.decode(spaced.encode("Hello")) == " Hello"
    assert spaced.encode(" Hello") == spaced.encode("Hello")
    assert spaced.decode(spaced.encode("Hello", continues=True)) == "Hello"
    # Between special tokens a text begins anew.
    ids = spaced.encode("a<e>b", allowed_special="all", continues=True)
    assert spaced.decode(ids) == "a<e> b"


NORMALIZED = ["ü", "x\u0308", "<|ü|>", "u\u0308!"]


@pytest.mark.live("tokenizers", "torch", "transformers")
@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([*NORMALIZED, "u", "\u0308", "a ", "<|u\u0308|>", "!"])).map("".join)
)
def test_flags_of_added_tokens_beside_a_normalizer(tmp_path_factory, text):
    """A token that is looked for in the normalised text is found however it is typed; another in
    the text as it stands."""
    import tokenizers

    base = Tokenizer.train([TEXT], 300, special_tokens=[], pattern="qwen2")
    tokens = {token: 400 + n for n, token in enumerate(NORMALIZED)}
    for which in (NORMALIZED, NORMALIZED[:2], []):
        ours = Tokenizer(
            base.vocabulary,
            base.merges,
            pattern="qwen2",
            normalizer="NFC",
            added_tokens=tokens,
            normalized_tokens=which,
        )
        directory = tmp_path_factory.mktemp("flags")
        ours.save_pretrained(directory)
        theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        expected = theirs.encode(text).ids
        # (Their ids of added tokens are those of the file, ours as well.)
        assert [400 <= id < 404 and id for id in ours.encode(text)] == [
            400 <= id < 404 and id for id in expected
        ]
        assert ours.encode(text) == expected
