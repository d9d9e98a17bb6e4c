"""Tokenizer files: every layout is read and written, and Hugging Face reads ours, with equal
ids."""

import json
import shutil

import pytest
from hypothesis import given, settings
from support import refused, shared, talk
from tokenizer.test_bpe import TRICKY

from numgpt import CharTokenizer, Tokenizer
from numgpt.tokenizer import build_bpe, load_tokenizer
from numgpt.tokenizer.byte_alphabet import to_printable
from numgpt.tokenizer.pattern import PATTERNS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tokenizer trained here and the directory it was saved to."""
    text = "Wörter, words and 1234 numbers; it's what they'd say.\n" * 30
    tokenizer = Tokenizer.train(text, 330, special_tokens=["<|endoftext|>", "<|user|>"])
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return tokenizer, directory


def same(a: Tokenizer, b: Tokenizer) -> None:
    assert a.vocabulary == b.vocabulary
    assert a.merges == b.merges
    assert a.special_tokens == b.special_tokens


def test_save_then_load_is_the_identity(saved, tmp_path):
    tokenizer, directory = saved
    same(load_tokenizer(directory), tokenizer)
    for names in (ONE, PAIR):
        part = tmp_path / names[0]
        part.mkdir()
        copy(directory, part, names)
        same(Tokenizer.from_pretrained(part), tokenizer)
    characters = CharTokenizer(list("abcé\n\u2028"))
    characters.save_pretrained(tmp_path / "characters")
    assert load_tokenizer(tmp_path / "characters").characters == characters.characters


def test_openais_files_and_hugging_faces_are_the_same_tokenizer(gpt2_tokenizer, tmp_path):
    gpt2_tokenizer.save_pretrained(tmp_path)
    same(load_tokenizer(tmp_path), gpt2_tokenizer)
    ids, merges = (tmp_path / name for name in PAIR)
    theirs = shared("gpt2", "encoder.json"), shared("gpt2", "vocab.bpe")
    assert json.loads(ids.read_text("utf-8")) == json.loads(theirs[0].read_text("utf-8"))
    lines = [path.read_text("utf-8").split("\n")[1:] for path in (merges, theirs[1])]
    assert lines[0] == lines[1]


@pytest.mark.live("tokenizers")
@given(text=TRICKY)
@settings(max_examples=150)
def test_hugging_face_reads_our_files_with_equal_ids(saved, text):
    import tokenizers

    ours, directory = saved
    theirs = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = text + "<|user|>"
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all")
    assert theirs.decode(ours.encode(text)) == text
    pair = tokenizers.models.BPE.from_file(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    bare = tokenizers.Tokenizer(pair)
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert bare.encode(text).ids == ours.encode(text)


def edit(directory, tmp_path, **changes):
    """A copy of tokenizer.json with dotted keys changed."""
    whole = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = whole
        for key in path:
            place = place[key]
        place[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    return tmp_path


ONE, PAIR = ("tokenizer.json",), ("vocab.json", "merges.txt")
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WORDS = {"type": "Split", "pattern": {"Regex": "(a+)+"}, "behavior": "Isolated", "invert": False}
LLAMA3 = WORDS | {"pattern": {"Regex": PATTERNS["llama3"]}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
EOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}


def sequence(*steps) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(*single) -> dict:
    return {"type": "TemplateProcessing", "single": list(single)}


def several(*processors) -> dict:
    return {"type": "Sequence", "processors": list(processors)}


def whole(text):
    """tokenizer.json holds this."""
    data = text if isinstance(text, bytes) else text.encode()
    return lambda saved, directory: (directory / "tokenizer.json").write_bytes(data)


def copy(saved, directory, names):
    for name in names:
        shutil.copy(saved / name, directory)


def beside(names, said):
    """These are as saved, and tokenizer_config.json says this."""

    def write(saved, directory):
        copy(saved, directory, names)
        (directory / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")

    return write


def config(**fields):
    return beside(ONE, fields)


def fields(**changes):
    """tokenizer.json with dotted keys changed."""
    return lambda saved, directory: edit(saved, directory, **changes)


WRONG = [
    (fields(model__type="Unigram"), "Unigram"),
    (fields(model__dropout=0.1), "model.dropout"),
    (fields(model__byte_fallback=True), "byte_fallback"),
    (fields(normalizer={"type": "NFKC"}), "NFKC"),
    (fields(normalizer="NFC"), "of another kind"),
    (fields(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    (fields(pre_tokenizer__use_regex=False), "use_regex"),
    (fields(pre_tokenizer=sequence(WORDS)), r"\['Split'\]"),
    (fields(pre_tokenizer=sequence(WORDS, BYTES)), r"'\(a\+\)\+' is not one of those known"),
    (fields(pre_tokenizer=sequence(WORDS | {"pattern": {"String": "a"}}, BYTES)), "None is not"),
    (fields(pre_tokenizer=sequence(LLAMA3 | {"behavior": "Removed"}, BYTES)), "'Removed'"),
    (fields(pre_tokenizer=sequence(LLAMA3 | {"invert": True}, BYTES)), "invert"),
    (fields(pre_tokenizer=sequence(LLAMA3, BYTES | {"use_regex": True})), "use_regex"),
    (fields(pre_tokenizer=sequence(LLAMA3, BYTES | {"add_prefix_space": True})), "prefix_space"),
    (fields(pre_tokenizer=sequence({"type": "Digits"}, BYTES)), "individual_digits"),
    (fields(pre_tokenizer=sequence("Digits", BYTES)), "of another kind"),
    (fields(pre_tokenizer={"type": "Sequence"}), "'pretokenizers' is missing"),
    (fields(post_processor={"type": "RobertaProcessing"}), "RobertaProcessing"),
    (fields(post_processor=template(TEXT, EOS)), "post_processor.single"),
    (fields(post_processor=template(EOS, EOS, TEXT)), "post_processor.single"),
    (fields(post_processor=several(template(EOS, TEXT), template(EOS, TEXT))), "twice"),
    (fields(post_processor=template({"SpecialToken": {"id": "<s>"}}, TEXT)), "bos_token='<s>'"),
    (fields(model__merges=["a b c"]), "merge 0"),
    (fields(model__merges=[["a", 5]]), "merge 0"),
    (fields(model__vocab__a="5"), "'a' has the id '5'"),
    (fields(added_tokens=[{"content": "<s>"}]), "'id' is missing"),
    (fields(model__merges=[["a", "zz"]]), "merge 0"),
    (fields(model__vocab={"a": 0}), "not a byte-level BPE|not in the vocabulary"),
    (config(bos_token=5), r"tokenizer_config\.json: "),
    (config(eos_token={"text": "<s>"}), r"tokenizer_config\.json: "),
    (config(add_bos_token="yes"), r"tokenizer_config\.json: "),
    (config(chat_template=7), r"tokenizer_config\.json: "),
    (config(chat_template=[{"template": "x"}]), r"tokenizer_config\.json: "),
    (config(chat_template=[{"name": "default", "template": None}]), r"tokenizer_config\.json: "),
    (config(chat_template=[5]), r"tokenizer_config\.json: "),
    (config(added_tokens_decoder={"x": {"content": "<s>"}}), r"tokenizer_config\.json: "),
    (config(added_tokens_decoder={"7": {}}), r"tokenizer_config\.json: "),
    (config(added_tokens_decoder=[7]), r"tokenizer_config\.json: "),
    (config(eos_token="<|nowhere|>"), r"eos_token='<\|nowhere\|>' is not one of the special"),
    (beside(ONE, [1]), r"tokenizer_config\.json: expected a JSON object"),
    (beside(PAIR, FAST), r"needs the file tokenizer\.json"),
    (lambda saved, directory: None, r"no tokenizer in .*tokenizer\.json"),
    (whole('{"model": {"vocab"'), r"tokenizer\.json is not valid JSON"),
    (whole(b"\xff"), r"tokenizer\.json is not valid JSON \(it is not UTF-8"),
    (whole("1" * 5000), r"is not valid JSON \(Exceeds the limit"),
    *[
        (whole(text), r"tokenizer\.json: (?!.*(?<!JSON )object)")
        for text in ("[]", "null", "{}", '{"model": []}', '{"model": {"vocab": 1e5}}')
    ],
]


@pytest.mark.parametrize(("write", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_bad_file_is_named(saved, tmp_path, write, message):
    write(saved[1], tmp_path)
    refused(lambda: load_tokenizer(tmp_path), message, tmp_path)


def test_a_missing_byte_that_would_become_the_unknown_token_is_refused(saved, tmp_path):
    vocabulary = json.loads((saved[1] / "vocab.json").read_text("utf-8"))
    tabless = {token: id for token, id in vocabulary.items() if token != "ĉ"}
    edit(saved[1], tmp_path, model__vocab=tabless)
    assert load_tokenizer(tmp_path).lacks_bytes_of_text
    edit(saved[1], tmp_path, model__vocab=tabless, model__unk_token="<|endoftext|>")
    with pytest.raises(ValueError, match=r"unk_token='<\|endoftext\|>'"):
        load_tokenizer(tmp_path)


def configure(directory, **config) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "post_processor", [template(EOS, TEXT), several({"type": "ByteLevel"}, template(EOS, TEXT))]
)
def test_a_template_that_begins_with_a_token_adds_it(saved, tmp_path, post_processor):
    edit(saved[1], tmp_path, post_processor=post_processor)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.add_bos_token) == ("<|endoftext|>", True)
    expected = [tokenizer.bos_token_id, *saved[0].encode("they")]
    assert tokenizer.encode("they", add_special_tokens=True) == expected
    configure(tmp_path, add_bos_token=False)
    assert load_tokenizer(tmp_path).encode("they", add_special_tokens=True) == expected[1:]
    configure(tmp_path, bos_token="<|user|>")
    with pytest.raises(ValueError, match=r"post_processor's token='<\|endoftext\|>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("names", [ONE, PAIR])
def test_what_tokenizer_config_says(saved, tmp_path, names):
    copy(saved[1], tmp_path, names)
    assert load_tokenizer(tmp_path).bos_token is None
    user = {"content": "<|user|>", "lstrip": False}
    configure(tmp_path, bos_token=user, eos_token="<|user|>", add_bos_token=True, chat_template="x")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|user|>", "<|user|>")
    assert tokenizer.add_bos_token
    assert tokenizer.chat_template == "x"
    named = [{"name": "tools", "template": "y"}, {"name": "default", "template": "z"}]
    configure(tmp_path, chat_template=named, bos_token=None, add_bos_token=None)
    assert load_tokenizer(tmp_path).chat_template == "z"
    configure(tmp_path, chat_template=named[:1])
    assert load_tokenizer(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("{{ é }}\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == "{{ é }}\n"
    configure(tmp_path, added_tokens_decoder={"700": {"content": "<|tool|>"}})
    assert load_tokenizer(tmp_path).special_tokens["<|tool|>"] == 700
    load_tokenizer(saved[1]).save_pretrained(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_two_files_mean_what_their_class_does(saved, tmp_path):
    """vocab.json and merges.txt don't say how text is cut: the class does, or nothing."""
    beside(PAIR, {"tokenizer_class": "Qwen2Tokenizer"})(saved[1], tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pattern.name, tokenizer.normalizer) == ("qwen2", "NFC")


def test_builds_from_printable_tokens():
    """As files of any kind have them."""
    learnt = Tokenizer.train("the cat sat\n" * 9, 262, special_tokens=["<|end|>"], pattern="qwen2")
    vocabulary = {to_printable(token): id for token, id in learnt.vocabulary.items()}
    pairs = [(to_printable(left), to_printable(right)) for left, right in learnt.merges]
    lines = [f"{left} {right}" for left, right in pairs]
    for merges in (pairs, lines, [list(pair) for pair in pairs]):
        built = build_bpe(vocabulary, merges, learnt.special_tokens, pattern="qwen2")
        same(built, learnt)
        assert built.pattern.name == "qwen2"
    unmade = vocabulary | {"Ġdog": 300, "<|a b|>": 301}
    assert build_bpe(unmade, lines, {}).special_tokens == {"Ġdog": 300, "<|a b|>": 301}
    whole = build_bpe(unmade, lines, {}, ignore_merges=True)
    assert whole.special_tokens == {"<|a b|>": 301}
    assert whole.encode("the dog")[-1] == 300


@pytest.mark.live("tokenizers")
def test_added_tokens_are_found_in_any_text_and_are_text(saved, tmp_path):
    tokenizer, directory = saved
    shutil.copytree(directory, tmp_path / "more")
    path = tmp_path / "more" / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = tokenizer.vocab_size
    added = {"<tool_call>": first, "    ": first + 1, "<tool_call>  ": first + 2}
    for text, id in added.items():
        whole["added_tokens"].append({"id": id, "content": text, "special": False} | flags)
    path.write_text(json.dumps(whole), encoding="utf-8")
    ours = load_tokenizer(path.parent)
    assert ours.added_tokens == added
    ours.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").added_tokens == ours.added_tokens
    text = "def f():\n    return <tool_call> 1<tool_call>   x      y<|user|>"
    ids = ours.encode(text)
    assert {first, first + 1, first + 2} <= set(ids)
    assert ours.decode(ids, skip_special_tokens=True) == text
    messages = talk("<tool_call>")
    assert first in ours.apply_chat_template(messages)  # … unless the template writes it, too
    import tokenizers as reference

    for file in (path, tmp_path / "again" / "tokenizer.json"):
        theirs = reference.Tokenizer.from_file(str(file))
        assert theirs.encode(text.removesuffix("<|user|>")).ids == ours.encode(text[:-8])
        assert theirs.decode(ids) == text
    whole["added_tokens"][-1]["lstrip"] = True
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ValueError, match="lstrip of the added token"):
        load_tokenizer(path.parent)
