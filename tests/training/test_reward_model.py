"""A reward model: its head and gradients, a run that learns to rank, its files, its accuracy."""

import random
from functools import partial

import numpy as np
import pytest
from models.references import small_model, their_logits
from models.test_gradients import along, numerical
from models.test_lora import adapted, randomise
from support import assert_close, refused, talk, write_lines
from training.runs import begin, cuts, ends_bit_for_bit, however_cut, logged, told
from training.test_preferences import PAIRS

import numgpt
from numgpt import evaluation, formats, objectives
from numgpt.formats.gguf_writing import save_gguf
from numgpt.training import DPOConfig, RewardConfig, TrainConfig, Trainer, TuneConfig

GOOD, BAD = ["love", "king", "sweet", "fair", "lord"], ["death", "blood", "woe", "grave", "hate"]


def pairs(count, seed):
    rng = random.Random(seed)

    def said(words):
        return " " + " ".join(rng.choice(words) for _ in range(rng.randint(3, 8)))

    prompts = ["My lord,", "What news", "Good", "The king is"]
    return [
        {"prompt": rng.choice(prompts), "chosen": said(GOOD), "rejected": said(BAD)}
        for _ in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "pairs.jsonl", *PAIRS)


start = partial(begin, RewardConfig, batch_size=3)


# --- the head ---


@pytest.mark.parametrize("family", ["default", "llama_grouped"])
@pytest.mark.parametrize("kind", [small_model, adapted])
def test_gradients_of_scores_and_of_values(family, kind):
    model, rng = kind(family, np.float64), np.random.default_rng(0)
    model.add_score_head(rng.normal(size=(1, model.config.width)))
    ids = rng.integers(model.config.vocab_size, size=(4, 7))
    last, wanted = np.array([6, 3, 0, 5]), rng.normal(size=4)

    def squares(scores):
        return float(((scores - wanted) ** 2).sum() / 2), scores - wanted, {"n": len(scores)}

    def scored():
        return squares(model.values(ids)[np.arange(4), last])[0]

    texts = [row[: end + 1] for row, end in zip(ids, last, strict=True)]
    loss, gradients, metrics = model.scores_and_grads(texts, squares)
    assert (loss, metrics) == (pytest.approx(scored(), rel=1e-12), {"n": 4})
    assert "score.weight" in gradients
    slope, direction = numerical(model, scored, list(gradients))
    assert along(gradients, direction) == pytest.approx(slope, rel=1e-6)

    targets = rng.integers(model.config.vocab_size, size=ids.shape)
    weights = rng.normal(size=(2, *ids.shape))

    def both(logp, entropies, values):
        assert entropies.shape == ids.shape
        value = (weights[0] * logp + weights[1] * values**2 / 2).sum()
        return float(value), (weights[0], 0 * logp, weights[1] * values), {}

    def together():
        logp = model.log_probs(ids, targets)
        return both(logp, logp, model.values(ids))[0]

    loss, gradients, _ = model.value_and_grads(ids, targets, both, entropy=True, values=True)
    assert loss == pytest.approx(together(), rel=1e-12)
    slope, direction = numerical(model, together, list(gradients))
    assert along(gradients, direction) == pytest.approx(slope, rel=1e-6)


def test_scores_are_those_at_the_last_token_that_is_no_padding():
    model = small_model("default", np.float64)
    head = model.add_score_head(seed=3)
    texts = [[1, 2, 3], [4, 5], [6]]
    expected = [head.scores(model.hidden(np.array([text])))[-1] for text in texts]
    np.testing.assert_allclose(model.scores(texts), expected, rtol=1e-12)
    model.config.pad_token_id = 5
    assert model.scores([[4, 5]])[0] == pytest.approx(model.values([4])[0, -1], rel=1e-12)
    assert model.scores([[5, 5]])[0] == pytest.approx(model.values([5])[0, 0], rel=1e-12)


def test_a_head_trains_with_what_trains_already():
    model = small_model("default", np.float32)
    model.freeze()
    model.add_score_head()
    assert model.trained.keys() == {"score.weight"}
    ids = np.ones((2, 3), np.int64)
    before = {name: array.copy() for name, array in model.parameters.items()}
    model.scores_and_grads(ids, lambda s: (0.0, np.ones_like(s), {}))
    optimizer = numgpt.AdamW(model, lr=0.1, weight_decay=0.0)
    optimizer.step()
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    assert model.scores(ids).mean() < 0 or model.scores(ids).std() == 0
    refused(lambda: small_model("default").scores([[1]]), "no score head")
    refused(lambda: small_model("default").add_score_head(np.ones((2, 3))), r"shape \(2, 3\)")


# --- a run ---


def test_it_ranks_pairs_that_it_has_not_seen(tmp_path):
    data = write_lines(tmp_path / "pairs.jsonl", *pairs(160, 0))
    held_out = write_lines(tmp_path / "held_out.jsonl", *pairs(60, 1))
    options = {"steps": 30, "batch_size": 4, "val_data": held_out, "eval_every": 30}
    trainer = start(data, tmp_path / "run", **options)
    assert any("accuracy 1.000" in line for line in told(trainer))
    last = logged(tmp_path / "run")[-1]
    assert last["accuracy"] == 1
    assert last["margin"] > 1
    assert last["val_loss"] < 0.1
    model, tokenizer = numgpt.load(tmp_path / "run")
    result = evaluation.preference_accuracy(model, tokenizer, held_out)
    assert result.pairs == 60
    assert result.accuracy >= 0.95
    assert result.margin > 1
    prompt, text = trainer.task.sample()
    assert prompt
    chosen, rejected = text.split("\n")
    assert chosen.startswith("[chosen: ")
    assert rejected.startswith("[rejected: ")
    assert set(chosen.split("] ")[1].split()) <= set(GOOD)
    assert set(rejected.split("] ")[1].split()) <= set(BAD)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_step_is_that_of_the_objective_however_it_is_cut(data, tmp_path, lora_r):
    trainer = start(data, tmp_path / "run", center_coefficient=0.1, lora_r=lora_r)
    task, model = trainer.task, trainer.model
    encode, end = trainer.tokenizer.encode, trainer.tokenizer.eos_token_id
    texts = [
        [*encode(pair["prompt"]), *encode(pair[name], continues=True), end]
        for name in ("chosen", "rejected")
        for pair in PAIRS
    ]
    scores = model.scores(texts).astype(float)
    expected, _, metrics = objectives.reward(scores[:6], scores[6:], None, 0.1)
    ways = cuts(task.examples, [6], [2, 6], [1, 2, 3, 4, 5, 6])
    for loss, found in however_cut(task, model, ways):
        assert loss == pytest.approx(expected, rel=1e-4)
        assert found == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_run_that_was_interrupted_ends_bit_for_bit(data, tmp_path, lora_r):
    options = {"lora_r": lora_r, "grad_accum": 2, "val_fraction": 0.3, "eval_every": 2}
    ends = ends_bit_for_bit(partial(start, data), tmp_path, (2,), **options)
    heads = [end.model.score_head.weight for end in ends]
    np.testing.assert_array_equal(*heads)
    # What is trained again from there has its head already.
    if not lora_r:
        again = start(data, tmp_path / "again", model=str(tmp_path / "whole"), **options)
        np.testing.assert_array_equal(again.model.score_head.weight, heads[0])


# --- files ---


def saved(family, directory, adapts):
    model = small_model(family, np.float32)
    if adapts:
        base = directory / "base"
        model.save_pretrained(base)
        model = formats.load_model(base)
        model.add_adapter(numgpt.LoRAConfig(r=2, target_modules="all-linear"))
        randomise(model, 1)
    model.config.pad_token_id = 0
    model.add_score_head(seed=2)
    save = model.save_adapter if adapts else model.save_pretrained
    save(directory / "head")
    return model


def with_head(base, adapter):
    model = formats.load_model(base)
    model.load_adapter(adapter)
    model.config.pad_token_id = 0
    return model


@pytest.mark.parametrize("family", ["default", "untied", "llama_grouped", "llama_qwen2"])
@pytest.mark.parametrize("adapts", [False, True])
def test_it_comes_back_from_its_files(family, adapts, tmp_path):
    model = saved(family, tmp_path, adapts)
    assert formats.is_reward_model(tmp_path / "head")
    if adapts:
        back = with_head(tmp_path / "base", tmp_path / "head")
        assert not formats.is_reward_model(tmp_path / "base")
    else:
        back = formats.load_model(tmp_path / "head")
    texts = [[1, 2, 3], [4, 5]]
    np.testing.assert_array_equal(back.scores(texts), model.scores(texts))
    assert back.trained.keys() == model.trained.keys() - {"lm_head", "lm_head.weight"}


@pytest.mark.live("transformers", "torch")
@pytest.mark.parametrize("family", ["default", "untied", "llama_grouped", "llama_qwen2"])
def test_transformers_gives_the_same_scores(family, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = saved(family, tmp_path, adapts=False)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "head")
    assert theirs.config.num_labels == 1
    texts = [[1, 2, 3], [4, 5, 0]]  # the last is padded
    scores = their_logits(theirs, texts)[:, 0]
    assert_close(model.scores(texts), scores)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_close(formats.load_model(tmp_path / "theirs").scores(texts), scores)


@pytest.mark.live("transformers", "torch", "peft")
@pytest.mark.parametrize("family", ["default", "llama_grouped"])
def test_peft_gives_the_same_scores(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = saved(family, tmp_path, adapts=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=0
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "head")
    texts = [[1, 2, 3], [4, 5, 0]]
    scores = their_logits(theirs, texts)[:, 0]
    assert_close(model.scores(texts), scores)
    theirs.save_pretrained(tmp_path / "theirs")
    back = with_head(tmp_path / "base", tmp_path / "theirs")
    assert_close(back.scores(texts), scores)


def test_what_is_refused(data, tmp_path):
    start(data, tmp_path / "judge", lora_r=0, steps=1).run()
    judge = str(tmp_path / "judge")
    for kind in (TuneConfig, DPOConfig):
        refused(lambda k=kind: begin(k, data, tmp_path / "no", model=judge), "is a reward model")
        assert not (tmp_path / "no").exists()
    head, tokenizer = numgpt.load(judge)
    refused(lambda: save_gguf(head, None, tmp_path / "a.gguf"), "has no place in GGUF")
    model = small_model("default")
    accuracy = evaluation.preference_accuracy
    refused(lambda: accuracy(model, tokenizer, data), "model=.* is no reward model")
    head.score_head.weight[...] = np.nan
    refused(lambda: head.save_pretrained(tmp_path / "nan"), "score.weight holds NaN")


def test_a_reward_model_can_be_tuned_on(data, tmp_path):
    """… by an adapter, which has a head of its own, that begins as the model's."""
    start(data, tmp_path / "judge", lora_r=0, steps=2).run()
    trainer = start(data, tmp_path / "more", model=str(tmp_path / "judge"), steps=2)
    base, _ = numgpt.load(tmp_path / "judge")
    np.testing.assert_array_equal(trainer.model.score_head.weight, base.score_head.weight)
    trainer.run()
    model, _ = numgpt.load(tmp_path / "more")
    assert (model.score_head.weight != base.score_head.weight).any()


def test_a_head_goes_with_the_adapter_that_brought_it(tmp_path):
    saved("default", tmp_path, adapts=True)
    model = with_head(tmp_path / "base", tmp_path / "head")
    model.add_adapter(numgpt.LoRAConfig(r=2, target_modules="all-linear"), name="policy")
    assert model.score_head is None
    model.save_adapter(tmp_path / "policy")
    assert not formats.is_reward_model(tmp_path / "policy")
    again = with_head(tmp_path / "base", tmp_path / "head")
    again.delete_adapter()
    again.save_pretrained(tmp_path / "plain")
    assert not formats.is_reward_model(tmp_path / "plain")


def test_an_adapter_with_a_broken_head_is_not_taken(tmp_path):
    model = saved("default", tmp_path, adapts=True)
    model.score_head.weight[...] = np.inf
    with pytest.raises(ValueError, match=r"score\.weight holds NaN"):
        model.save_adapter(tmp_path / "no")
    path = tmp_path / "head" / "adapter_model.safetensors"
    tensors, metadata = formats.read_safetensors(path)
    arrays = {name: np.array(tensor.raw).reshape(tensor.shape) for name, tensor in tensors.items()}
    arrays["base_model.model.score.weight"][...] = np.nan
    formats.write_safetensors(path, arrays, metadata)
    other = formats.load_model(tmp_path / "base")
    refused(lambda: other.load_adapter(tmp_path / "head"), "score.weight' holds NaN or infinity")
    assert other.active_adapter is None
    arrays["base_model.model.score.weight"] = np.zeros((2, model.config.width), np.float32)
    formats.write_safetensors(path, arrays, metadata)
    refused(lambda: other.load_adapter(tmp_path / "head"), "only a head of one output is read")


def test_it_is_no_language_model_to_train(tmp_path, data):
    start(data, tmp_path / "judge", lora_r=0, steps=1).run()
    config = TrainConfig(init_from=str(tmp_path / "judge"))
    refused(lambda: Trainer.start(config, tmp_path / "no"), "is a reward model: name a language")
    judge, tokenizer = numgpt.load(tmp_path / "judge")
    accuracy = partial(evaluation.preference_accuracy, judge, tokenizer)
    refused(lambda: accuracy(str(tmp_path / "none.jsonl")), "^preferences='.*none")
    prompt, *chosen = talk("a", "b")
    pair = {"prompt": [prompt], "chosen": chosen, "rejected": talk("a", "c")[1:]}
    asked = write_lines(tmp_path / "talk.jsonl", pair)
    message = "the model was tuned on texts, and its chat template does not write conversations"
    refused(lambda: accuracy(asked), f"line 1: {message}")


def test_pairs_that_are_too_long_are_cut_or_left_out_and_told(tmp_path, data, call):
    start(data, tmp_path / "judge", steps=1).run()
    long = 500 * "long "
    cut, left_out = PAIRS[0] | {"prompt": long}, PAIRS[0] | {"chosen": long}
    asked = write_lines(tmp_path / "long.jsonl", PAIRS[0], cut, left_out)
    status, out, err = call("eval", "--model", tmp_path / "judge", "--preferences", asked)
    assert (status, out.split()[0]) == (0, "accuracy")
    told = "2 pairs; 1 too long, cut from the left of the prompt; 1 left out, too long for the"
    assert told in err
