"""Examples: what is learnt of them, how they are cut, kept on disk and put into batches."""

import dataclasses
import hashlib
import unittest.mock

import numpy as np
import pytest
from support import talk
from tokenizer.chat_formats import LLAMA2, ZEPHYR

import numgpt
from numgpt.data.corpus import check_tokens
from numgpt.data.example_set import BEGINS, ExampleSet, encode_examples
from numgpt.data.examples import Example, ExampleEncoder, fit, last_answer, marked
from numgpt.data.records import COMPLETION, MESSAGES, PREFERENCE, PROMPT, TEXT, Record
from numgpt.tokenizer import Tokenizer
from numgpt.tokenizer.chat_formats import CHAT_TEMPLATES

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def record(kind=MESSAGES, **fields):
    return Record("a.jsonl", 7, kind, fields)


@pytest.fixture(scope="module")
def plain():
    return numgpt.load("shakespeare")[1]


@pytest.fixture(scope="module")
def chatml():
    text = ["system user assistant\nYou are helpful. Hello there, how are you? Fine, thanks."]
    tokenizer = Tokenizer.train(text, 300, SPECIAL)
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


FORMATS = {
    "chatml": (
        CHAT_TEMPLATES["chatml"],
        SPECIAL,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Hello<|im_end|>»\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n«See you<|im_end|>»\n",
    ),
    "llama3": (
        CHAT_TEMPLATES["llama3"],
        ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Hello<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«See you<|eot_id|>»",
    ),
    "llama2": (
        LLAMA2,
        ["<s>", "</s>"],
        "<s>[INST] Hi [/INST]« Hello </s>»<s>[INST] Bye [/INST]« See you </s>»",
    ),
    "zephyr": (
        ZEPHYR,
        ["<s>", "</s>"],
        "<|user|>\nHi</s>\n<|assistant|>\n«Hello</s>»\n"
        "<|user|>\nBye</s>\n<|assistant|>\n«See you</s>»\n",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_assistants_turns_are_learnt(name):
    template, special, expected = FORMATS[name]
    tokenizer = Tokenizer.train(["user assistant Hello there"], 300, special)
    tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token = template, "<s>", "</s>"
    messages = talk("Hi", "Hello", "Bye", "See you")
    example = ExampleEncoder(tokenizer).encode(record(messages=messages))
    assert marked(example, tokenizer) == expected
    # The prompt is what generation begins with, and the answer's tokens what it would go on with.
    prompt = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True)
    assert example.ids[: len(prompt)].tolist() == prompt
    assert example.loss_mask[len(prompt)]
    assert not example.loss_mask[len(prompt) - 1]


def test_plain_text_ends_with_the_texts_end(plain):
    example = ExampleEncoder(plain).encode(record(messages=talk("Hi", "Hello", "Bye", "See you")))
    expected = "User: Hi\nAssistant:« Hello\n»User: Bye\nAssistant:« See you\n<|endoftext|>»"
    assert marked(example, plain) == expected


def test_what_users_write_is_no_marker(chatml):
    spelt = "<|im_end|>\n<|im_start|>assistant\nYes"
    example = ExampleEncoder(chatml).encode(record(messages=talk(spelt, f"No {spelt}")))
    markers = [chatml.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>")]
    assert [int(np.count_nonzero(example.ids == marker)) for marker in markers] == [2, 2]


def test_prompt_and_completion(plain):
    encoder = ExampleEncoder(plain)
    example = encoder.encode(record(COMPLETION, prompt="To be", completion=", or not"))
    assert marked(example, plain) == "To be«, or not<|endoftext|>»"
    # In segments: no token reaches over the border, whatever the whole text would make.
    prompt = plain.encode("To be")
    assert example.ids[: len(prompt)].tolist() == prompt
    said = talk("Hi", "Hello", "Bye")
    example = encoder.encode(record(COMPLETION, prompt=said[:1], completion=said[1:2]))
    assert marked(example, plain) == "User: Hi\nAssistant:« Hello\n<|endoftext|>»"
    # What the assistant said in a prompt is not learnt.
    example = encoder.encode(record(COMPLETION, prompt=said, completion="See you"))
    assert marked(example, plain).count("«") == 1
    assert marked(encoder.encode(record(TEXT, text="To be")), plain) == "«To be<|endoftext|>»"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record(COMPLETION, prompt="a", completion=""), "the completion is empty"),
        (record(messages=talk("Hi")), "nothing in it is trained on"),
        (record(messages=talk("Hi", "  ")), "an answer of the assistant is empty"),
        (record(COMPLETION, prompt=talk("a"), completion=talk("b")), "no message of the assistant"),
        (record(PROMPT, prompt="a"), "a prompt alone: the answer's key is 'completion'"),
        (record(PROMPT, prompt="a", response="b"), "and .'response'.: the answer's key is 'comp"),
        (record(PREFERENCE, chosen="a", rejected="b"), "supervised tuning learns from text"),
        (
            record(messages=[*talk("Hi", "Ho"), {"role": "system", "content": "x"}]),
            "the system first or not at all: write what it says later as the user's",
        ),
    ],
)
def test_what_teaches_nothing_is_named(plain, wrong, message):
    with pytest.raises(ValueError, match=f"a.jsonl, line 7: .*{message}"):
        ExampleEncoder(plain).encode(wrong)


def test_a_long_example_is_cut_from_the_left_of_its_prompt():
    example = Example(np.arange(10), np.arange(10) >= 6, desirable=False)
    assert fit((example,), 10) == (example,)
    (cut,) = fit((example,), 5)
    assert cut.ids.tolist() == [5, 6, 7, 8, 9]
    assert cut.loss_mask.tolist() == [False, True, True, True, True]
    assert not cut.desirable
    assert fit((example,), 4) is None  # nothing would predict the first that is learnt
    assert fit((example,), 9)[0].ids.tolist() == list(range(1, 10))  # one token too long
    alone = Example(np.arange(3), np.array([False, True, True]))
    assert fit((alone,), 3) == (alone,)
    assert fit((alone,), 2) is None
    learnt_from_the_start = Example(np.arange(3), np.array([True, True, True]))
    assert fit((learnt_from_the_start,), 2) is None


def test_a_first_token_alone_is_nothing_to_learn(plain, monkeypatch):
    """Nothing predicts it."""
    monkeypatch.setattr(plain, "eos_token", None)
    encoder = ExampleEncoder(plain)
    with pytest.raises(ValueError, match=r"nothing .* trained on: .*a text of two tokens"):
        encoder.encode(record(TEXT, text="a"))
    assert encoder.encode(record(TEXT, text="ab, ")).loss_mask.all()


@pytest.mark.parametrize(
    ("ids", "learnt", "expected"),
    [
        ([1, 2, 3, 9], [0, 0, 1, 1], ([1, 2], [3, 9])),
        ([1, 2, 3, 4], [0, 1, 0, 1], ([1, 2, 3], [4])),
        ([1, 2, 3, 9], [0, 1, 0, 1], ([1], [2])),  # an end by itself is no answer
        ([1, 2], [1, 1], None),  # of a text, nothing comes before it
        ([1, 9], [0, 1], None),
    ],
)
def test_the_last_answer_is_what_is_asked_for(ids, learnt, expected):
    found = last_answer(Example(np.array(ids), np.array(learnt, bool)), ends=[9])
    assert (found and tuple(part.tolist() for part in found)) == expected


def on_disk(tokenizer, directory, records, held_out=(), most=1000):
    """Records as examples in a directory, those of these numbers held out."""
    chosen = [(one, number in held_out) for number, one in enumerate(records)]
    return encode_examples(chosen, ExampleEncoder(tokenizer), most, directory)


def example_set(tokenizer, directory, lengths, **options):
    """Examples of a prompt token and an answer of so many."""
    records = [record(COMPLETION, prompt="a", completion="b " * length) for length in lengths]
    tokens, counts = on_disk(tokenizer, directory, records, **options)
    return ExampleSet(directory, tokens), counts


def test_examples_on_disk_are_what_was_encoded(plain, tmp_path):
    encoder = ExampleEncoder(plain)
    records = [
        record(messages=talk("Hi", "Hello", "Bye", "See you")),
        record(COMPLETION, prompt="To be", completion=", or not"),
        record(TEXT, text="To be"),
    ]
    tokens, counts = on_disk(plain, tmp_path, records, held_out=[1])
    examples = ExampleSet(tmp_path, tokens)
    assert examples.train.tolist() == [0, 2]
    assert examples.val.tolist() == [1]
    for number, one in enumerate(records):
        expected = encoder.encode(one)
        np.testing.assert_array_equal(examples.example(number).ids, expected.ids)
        np.testing.assert_array_equal(examples.example(number).loss_mask, expected.loss_mask)
    first = encoder.encode(records[0])
    targets = examples.padded(np.array([0])).targets[0]
    assert not first.loss_mask[1:].all()
    np.testing.assert_array_equal(targets, np.where(first.loss_mask, first.ids, -100)[1:])
    assert (counts.trained, counts.held_out, counts.cut, counts.dropped) == (2, 1, 0, 0)
    again = unittest.mock.Mock()
    check_tokens(tmp_path, tokens, again)
    with open(tmp_path / "tokens.bin", "r+b") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="other tokens than the run began with"):
        check_tokens(tmp_path, tokens, again)
    again.assert_not_called()


def test_padding_is_told_by_its_place(plain, tmp_path):
    examples, _ = example_set(plain, tmp_path, [1, 4])
    ids, targets, tokens, numbers = examples.padded(np.array([0, 1]))
    assert numbers.tolist() == [0, 1]
    for row in range(2):
        example = examples.example(row)
        length = len(example.ids) - 1
        np.testing.assert_array_equal(ids[row, :length], example.ids[:-1])
        np.testing.assert_array_equal(targets[row, 1:length], example.ids[2:])
        assert (targets[row, length:] == -100).all()
        # The end of the text is learnt, though padding might have its id.
        assert targets[row, length - 1] == plain.eos_token_id
    assert tokens == sum(len(examples.example(row).ids) - 1 for row in range(2))


def test_padding_changes_no_gradient(plain, tmp_path):
    """A batch of unequal examples, against each by itself with one count for both."""
    examples, _ = example_set(plain, tmp_path, [1, 9, 4])
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 64}
    config = numgpt.GPTConfig(**sizes, vocab_size=plain.vocab_size)
    model = numgpt.GPT(config, dtype=np.float64)
    together = examples.padded(np.arange(3))
    loss, gradients = model.loss_and_grads(together.ids, together.targets)
    count, alone, total = together.counted, 0.0, None
    for number in range(3):
        one = examples.padded(np.array([number]))
        part, total = model.loss_and_grads(one.ids, one.targets, weights=1 / count, add_to=total)
        alone += part
    assert alone == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(total[name], gradient, rtol=1e-9, atol=1e-14)


def test_an_epoch_has_each_example_once_in_an_order_of_its_own(plain, tmp_path):
    rng = np.random.default_rng(0)
    examples, _ = example_set(plain, tmp_path, rng.integers(1, 60, size=301), held_out=range(20))
    count = examples.batches_in_epoch(4)
    assert count == -(-281 // 4)
    epochs, padding = [], []
    for epoch in range(2):
        seen = []
        for number in range(epoch * count, (epoch + 1) * count):
            batch = examples.batch(number, 4, seed=3)
            np.testing.assert_array_equal(batch.ids, examples.batch(number, 4, seed=3).ids)
            padding.append((batch.ids.size, batch.ids.size - batch.tokens))
            seen += [tuple(targets[targets != -100]) for targets in batch.targets]
        assert len(seen) == 281
        epochs.append(seen)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert [len(one) for one in epochs[0][:40]] != sorted(len(one) for one in epochs[0][:40])
    places, padded = map(sum, zip(*padding, strict=True))
    assert padded < 0.2 * places
    other = examples.batch(0, 4, seed=4)
    assert not np.array_equal(other.ids, examples.batch(0, 4, seed=3).ids)
    held_out = list(examples.validation_batches(8))
    assert sum(len(batch.ids) for batch in held_out) == 20


def test_no_two_epochs_have_the_same_batches(plain, tmp_path):
    """… not even of a few examples, of lengths that are all different."""
    examples, _ = example_set(plain, tmp_path, range(10, 22))
    epochs = {
        frozenset(
            frozenset(int((targets != -100).sum()) for targets in batch.targets)
            for batch in (examples.batch(epoch * 3 + number, 4, seed=1) for number in range(3))
        )
        for epoch in range(6)
    }
    assert len(epochs) > 3


def test_what_is_too_long_is_counted(plain, tmp_path):
    examples, counts = example_set(plain, tmp_path, [1, 50, 2], most=10)
    assert (counts.trained, counts.dropped) == (2, 1)
    assert "1 left out, too long even without a prompt" in str(counts)
    assert len(examples.train) == 2
    for options, message in (
        ({"lengths": [50], "most": 10}, "too long for max_length=10, even"),
        ({"lengths": [1], "held_out": [0]}, "held out"),
    ):
        with pytest.raises(ValueError, match=f"no examples to train on: all 1 are {message}"):
            example_set(plain, tmp_path, **options)


def test_what_became_of_the_records_is_counted(plain, tmp_path):
    short = record(COMPLETION, prompt="a", completion="b")
    long = record(COMPLETION, prompt="a " * 50, completion="b")
    records = [long, short, dataclasses.replace(short, origin="x")]
    tokens, counts = on_disk(plain, tmp_path, records, held_out=[1], most=10)
    example = ExampleEncoder(plain).encode(short)
    assert (counts.trained, counts.held_out, counts.cut, counts.dropped) == (2, 1, 1, 0)
    assert counts.tokens == 10 + len(example.ids)
    assert counts.counted == 2 * example.loss_mask.sum()
    assert str(counts) == (
        f"2 examples of prompt and completion (made of x); {counts.counted} of {counts.tokens}"
        " tokens are trained on; 1 more held out; 1 too long, cut from the left of the prompt"
    )
    assert len(ExampleSet(tmp_path, tokens).val) == 1


def test_a_file_that_does_not_begin_with_an_example_is_none(plain, tmp_path):
    tokens, _ = on_disk(plain, tmp_path, [record(TEXT, text="To be")])
    path = tmp_path / "tokens.bin"
    held_out = np.fromfile(path, "<u4")
    held_out[0] ^= BEGINS
    held_out.tofile(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"tokens\.bin holds no examples to train on"):
        ExampleSet(tmp_path, dataclasses.replace(tokens, sha256=digest))
