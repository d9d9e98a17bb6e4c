"""generation_config.json: what it says is generated where nothing is given; and it is kept."""

import json
import re

import numpy as np
import pytest
from models.references import small_model, their_generation
from support import write_lines

import numgpt
from numgpt import Tokenizer
from numgpt.training import Trainer, TuneConfig

TEXT = "The user and the assistant say: to be, or not to be. " * 9


def written(directory, config, **fields):
    """A model with this generation_config.json."""
    model = small_model("default")
    model.parameters.flat *= np.float32(3)  # else it says the same over and over
    model.save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps(config))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return directory


CONFIGS = {
    "none": {},
    "lengths": {"max_new_tokens": 5},
    "max_length": {"max_length": 9},
    "penalties": {"max_new_tokens": 9, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "banned": {"max_new_tokens": 6, "bad_words_ids": [[1], [3, 4]]},
    "sampling one": {"max_new_tokens": 7, "do_sample": True, "top_k": 1},
    "not sampling": {"max_new_tokens": 7, "temperature": 0.2, "top_p": 0.3},
    "zero": {"max_new_tokens": 3, "do_sample": False, "temperature": 0.0},
    "beams": {"max_new_tokens": 6, "num_beams": 3, "length_penalty": 0.3},
    "sequences": {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2},
    "ends": {"max_new_tokens": 9, "eos_token_id": [3, 5, 8, 13, 21, 30], "pad_token_id": 2},
    "at least": {"max_new_tokens": 9, "min_new_tokens": 6, "eos_token_id": list(range(20))},
}
GIVEN = [{}, {"max_new_tokens": 4}, {"max_length": 7}, {"repetition_penalty": 1.0}]
GIVEN += [{"num_beams": 1}]


@pytest.mark.live("torch", "transformers")
@pytest.mark.parametrize("name", CONFIGS)
def test_generate_takes_what_transformers_takes(name, tmp_path):
    import transformers

    written(tmp_path, CONFIGS[name])
    ours = numgpt.GPT.from_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = np.array([[7, 1, 4], [2, 9, 30]])
    for given in GIVEN:
        if given == {"num_beams": 1} and name == "sequences":
            continue  # more sequences than beams: neither makes them
        expected = their_generation(theirs, prompts, **given).numpy()
        np.testing.assert_array_equal(ours.generate(prompts, **given), expected)


def test_what_is_given_comes_first(tmp_path):
    written(tmp_path, {"max_new_tokens": 5, "do_sample": True, "temperature": 9.0, "top_k": 30})
    model = numgpt.GPT.from_pretrained(tmp_path)
    ids = [7, 1, 4]
    drawn = {tuple(model.generate(ids, seed=seed)[0].tolist()) for seed in range(8)}
    assert len(drawn) > 4
    assert all(len(sequence) == 8 for sequence in drawn)
    greedy = model.generate(ids, do_sample=False)
    for seed in range(3):
        np.testing.assert_array_equal(model.generate(ids, seed=seed, top_k=1), greedy)
    model.generation_config["top_k"] = 1  # and what the program sets, as in transformers
    np.testing.assert_array_equal(model.generate(ids), greedy)
    assert list(model.stream(ids)) == greedy[0, 3:].tolist()
    model.generation_config["eos_token_id"] = int(greedy[0, 4])
    assert len(list(model.stream(ids))) < 5


def test_options_that_are_not_supported_are_named(tmp_path):
    written(
        tmp_path, {"max_new_tokens": 2, "typical_p": 0.5, "suppress_tokens": [1], "num_beams": 2}
    )
    model = numgpt.GPT.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="suppress_tokens, typical_p: left out"):
        model.generate([1])
    with pytest.warns(UserWarning, match="num_beams, suppress_tokens, typical_p"):
        list(model.stream([1]))
    model.generation_config = {"max_new_tokens": 2, "typical_p": 1.0, "use_cache": False}
    model.generate([1])  # says nothing: pytest makes warnings errors here
    model.generation_config = {"top_k": "x", "do_sample": True}
    with pytest.raises(ValueError, match="top_k='x'"):
        model.generate([1])


pytestmark = pytest.mark.filterwarnings("error:the model's generation_config:UserWarning")


def test_a_chat_samples_as_the_model_says(tmp_path):
    tokenizer = Tokenizer.train([TEXT], 300)
    model = small_model("default")
    assert numgpt.Chat(model, tokenizer).options["temperature"] == 0.2
    model.generation_config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "num_beams": 1}
    chat = numgpt.Chat(model, tokenizer, top_p=0.5)
    assert (chat.options["temperature"], chat.options["top_p"]) == (0.6, 0.5)
    model.generation_config = {"do_sample": False}
    assert numgpt.Chat(model, tokenizer).options["do_sample"] is False


@pytest.fixture
def shipped(tmp_path):
    """The shipped model, with settings of its own."""
    model, tokenizer = numgpt.load("shakespeare")
    model.generation_config = {"do_sample": False, "max_new_tokens": 3}
    tokenizer.settings = {"pad_token": tokenizer.eos_token, "padding_side": "left"}
    model.config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def generated(works):
    """Of "To be", on the command line -> stdout, stderr."""
    return lambda model, *flags: works("generate", "--model", model, "To be", *flags)


def test_the_command_line_heeds_it(generated, shipped):
    model, tokenizer = numgpt.load(shipped)
    ids = tokenizer.encode("To be")
    greedy = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=3)[0])
    out, err = generated(shipped)
    assert out == greedy + "\n"
    assert "seed" not in err
    assert "seed 4" in generated(shipped, "--temperature", 2, "--seed", 4)[1]
    assert len(generated(shipped, "--max-new-tokens", 1)[0]) < len(greedy) + 1


def tuned(model, out, **options) -> None:
    """One step of tuning, on four examples."""
    examples = [{"prompt": "To be", "completion": " or not"}] * 4
    data = write_lines(out.with_suffix(".jsonl"), *examples)
    Trainer.start(TuneConfig(model=str(model), data=data, steps=1, **options), out).run()


def kept(directory) -> None:
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation.items() >= {"do_sample": False, "max_new_tokens": 3}.items()
    assert json.loads((directory / "config.json").read_text())["pad_token_id"] is not None
    config = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["pad_token"] == "<|endoftext|>"
    assert config["padding_side"] == "left"


@pytest.mark.live("transformers", "torch")
def test_it_is_kept_wherever_the_model_goes(works, shipped, tmp_path):
    kept(shipped)
    model, tokenizer = numgpt.load(shipped)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    kept(tmp_path / "again")
    works("convert", shipped, tmp_path / "converted")
    kept(tmp_path / "converted")
    tuned(shipped, tmp_path / "tuned", lora_r=0, sample_every=0)
    kept(tmp_path / "tuned")
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert theirs(["To be", "To"], padding=True)["attention_mask"][1][0] == 0  # on the left
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "tuned")
    assert generation.max_new_tokens == 3


@pytest.mark.parametrize("ends", [-1, []])
def test_no_end_is_none(tmp_path, ends):
    fields = {"bos_token_id": -1, "eos_token_id": ends, "pad_token_id": -1}
    model = numgpt.GPT.from_pretrained(written(tmp_path, {}, **fields))
    assert model.config.bos_token_id is model.config.eos_token_id is None
    assert model.generate([1], max_new_tokens=9).shape == (1, 10)
    written(tmp_path, {"eos_token_id": ends, "pad_token_id": -1})
    assert numgpt.GPT.from_pretrained(tmp_path).generate([1]).shape == (1, 21)


@pytest.mark.live("torch")
def test_transformers_inputs_are_taken_as_they_are():
    model = small_model("default")
    inputs = {"input_ids": np.array([[0, 7, 1], [3, 4, 5]])}
    inputs["attention_mask"] = np.array([[0, 1, 1], [1, 1, 1]])
    expected = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    np.testing.assert_array_equal(model.generate(**inputs), expected)
    assert list(model.stream(input_ids=[7, 1])) == list(model.stream([7, 1]))
    for wrong in ({}, {"ids": [1], "input_ids": [1]}):
        with pytest.raises(TypeError, match="the prompt's ids, once"):
            model.generate(**wrong)
    import torch

    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    np.testing.assert_array_equal(model.generate(**tensors), expected)


# --- special tokens in a text ---


def test_special_tokens_in_a_prompt_can_be_meant(works):
    text = "<|endoftext|>"
    options = ("--model", "shakespeare", "--logprobs", "--greedy", "--max-new-tokens", 2)
    as_text, _ = works("generate", text, *options)
    meant, _ = works("generate", text, *options, "--special-tokens")
    assert json.loads(as_text)["tokens"] != json.loads(meant)["tokens"]
    model, tokenizer = numgpt.load("shakespeare")
    expected = model.generate([tokenizer.eos_token_id], max_new_tokens=2)[0, 1:]
    assert json.loads(meant)["text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_special_tokens_between_stories_can_be_meant(works, tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_text("Once upon a time.\n<|endoftext|>\nTo be, or not to be.\n" * 60)
    sizes = ("--n-layer=1", "--n-embd=8", "--n-head=1", "--block-size=8", "--vocab-size=270")
    train = ("train", "--data", stories, "--steps=1", "--sample-every=0", *sizes)
    counts = []
    for flags in ((), ("--special-tokens",)):
        out = tmp_path / f"run{len(flags)}"
        _, err = works(*train, "--out", out, *flags)
        assert ("spells special tokens" in err) == (not flags)
        tokens = np.fromfile(out / "tokens.bin", "<u2")
        end = Tokenizer.from_pretrained(out).eos_token_id
        counts.append(int(np.count_nonzero(tokens == end)))
        (out / "tokens.bin").unlink()  # … and made again in the same way
        works("train", "--resume", out, "--steps=2")
        assert np.array_equal(np.fromfile(out / "tokens.bin", "<u2"), tokens)
    assert counts == [0, 60]
    losses = [works("eval", "--model", out, "--data", stories, *f)[0] for f in ((), flags)]
    assert losses[0] != losses[1]


# --- flags and files together ---


@pytest.fixture
def with_config(shipped):
    def write(**config):
        path = shipped / "generation_config.json"
        path.write_text(json.dumps(config))
        return shipped

    return write


def test_beams_by_a_flag_search_whatever_the_file_samples(generated, refuses, with_config):
    sampling = with_config(do_sample=True, temperature=0.7, top_p=0.8, max_new_tokens=4)
    out, _ = generated(sampling, "--num-beams", 3)
    model, tokenizer = numgpt.load("shakespeare")
    expected = model.generate(tokenizer.encode("To be"), num_beams=3, max_new_tokens=4)[0]
    assert out == tokenizer.decode(expected) + "\n"
    # Beams of the file: a flag that samples takes their place, a contradiction is told.
    beams = with_config(num_beams=3, max_new_tokens=4)
    assert generated(beams)[0] == out
    assert "seed 5" in generated(beams, "--seed", 5)[1]
    assert "seed" in generated(beams, "--temperature", 0.5)[1]
    assert "add --num-beams 1" in refuses("generate", "--model", beams, "To be", "--logprobs")
    both = with_config(num_beams=3, do_sample=True)
    assert "add --num-beams 1, or --greedy" in refuses("generate", "--model", both, "To be")
    for flags in (("--num-beams", 1), ("--greedy",)):
        generated(both, "--max-new-tokens", 2, *flags)


def test_lengths_by_flags_come_first(generated, with_config):
    model, tokenizer = numgpt.load("shakespeare")
    length = len(tokenizer.encode("To be"))
    long = with_config(max_new_tokens=5, min_new_tokens=300, do_sample=False)
    assert generated(long, "--max-length", length + 1)[1].startswith("1 tokens")
    assert generated(long)[1].startswith("5 tokens")
    assert generated(long, "--max-new-tokens", 2)[1].startswith("2 tokens")
    generated(with_config(min_new_tokens=300))
    model, tokenizer = numgpt.load(with_config(max_new_tokens=2, min_new_tokens=3000))
    for given, count in (({}, 2), ({"max_new_tokens": 1}, 1)):
        chat = numgpt.Chat(model, tokenizer, **given)
        list(chat.ask("Hi"))
        assert chat.statistics.new_tokens == count
    assert model.generate([1]).shape == (1, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token_id": 1.5}, "pad_token_id 1.5: expected a token id|pad_token_id=1.5"),
        ({"eos_token_id": [[1]]}, "eos_token_id"),
        ({"num_beams": "x"}, "num.beams"),
        ({"bad_words_ids": -1}, "bad_words_ids"),
        ({"top_k": "x", "do_sample": True}, "top.k"),
    ],
)
def test_wrong_values_in_the_file_are_named(refuses, with_config, config, message):
    for flags in ((), ("--logprobs",)):
        given = ("--model", with_config(**config), "--max-new-tokens", 1, *flags)
        assert re.search(message, refuses("generate", "To be", *given))


def test_what_is_no_models_to_set_is_not_taken(with_config):
    path = with_config(**{"": "x", "tokenizer": "x", "seed": 3, "slide": True, "max_new_tokens": 1})
    model, _ = numgpt.load(path)
    with pytest.warns(UserWarning, match="seed, slide, tokenizer: left out"):
        assert model.generate([1]).shape == (1, 2)
    assert model.generate([1], generation_config={"max_new_tokens": 3}).shape == (1, 4)
    assert model.generate([1], generation_config={}, max_new_tokens=None).shape == (1, 21)
    with pytest.raises(ValueError, match="generation_config=5: expected a dict"):
        model.generate([1], generation_config=5)


def test_samples_of_a_run_are_the_likeliest_whatever_the_file_says(with_config, tmp_path):
    base = with_config(num_beams=2, do_sample=True, bad_words_ids=5)
    tuned(base, tmp_path / "run", lora_r=2, sample_every=1)


def test_its_own_ends_are_kept(tmp_path):
    model = small_model("default")
    model.generation_config = {"bos_token_id": 5, "eos_token_id": 7, "max_new_tokens": 5}
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved == model.generation_config
