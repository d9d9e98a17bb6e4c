"""DPO as a run: pairs, their reference, what is logged, and a run that goes on bit for bit."""

import io
import math
from functools import partial

import numpy as np
import pytest
from support import refused, talk, write_lines
from training.runs import begin, cuts, ends_bit_for_bit, however_cut, logged, moved

import numgpt
from numgpt import objectives
from numgpt.data.finding import REFERENCE_FILE
from numgpt.formats import read_safetensors
from numgpt.training import DPOConfig, Trainer, TrainingError
from numgpt.training.checkpoint import load_checkpoint

PAIRS = [
    {"prompt": "To be", "chosen": ", or not to be", "rejected": " a king"},
    {"prompt": "My lord,", "chosen": " I come", "rejected": " go hence, and tell him so"},
    {"prompt": "What", "chosen": " news?", "rejected": " is it"},
    {"prompt": "The king", "chosen": " comes here with his train", "rejected": " is dead"},
    {"prompt": "Good", "chosen": " morrow", "rejected": " night"},
    {"prompt": "I", "chosen": " will", "rejected": " know thee not, old man"},
]


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "pairs.jsonl", *PAIRS)


start = partial(begin, DPOConfig, batch_size=3)


def log_probabilities(model, trainer):
    """Of the pairs' completions, chosen and rejected, a row each."""
    batch = trainer.task.examples.padded(np.arange(6))
    return model.log_probs(batch.ids, batch.targets).sum(axis=1).reshape(2, -1)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_the_chosen_answers_become_likelier_than_the_rejected_ones(data, tmp_path, lora_r):
    lr = 3e-3 if lora_r else 3e-4
    trainer = start(data, tmp_path / "run", steps=16, lora_r=lora_r, lr=lr)
    assert str(trainer.task) == "6 preferences to train on"
    trainer.run()
    first, *_, last = logged(tmp_path / "run")
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)  # the policy is the reference
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.3
    assert last["rewards/accuracies"] == 1
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(margin, rel=1e-5)
    assert {"logps/chosen", "logps/rejected", "grad_norm", "lr"} <= last.keys()
    policy, base = (numgpt.load(name)[0] for name in (tmp_path / "run", "shakespeare"))
    chosen, rejected = log_probabilities(policy, trainer) - log_probabilities(base, trainer)
    assert (chosen > rejected).all()


def test_the_reference_is_the_model_that_the_run_began_as(data, tmp_path):
    trainer = start(data, tmp_path / "run")
    base, _ = numgpt.load("shakespeare")
    examples = trainer.task.examples
    assert len(examples) == 6
    expected = log_probabilities(base, trainer).T
    np.testing.assert_allclose(trainer.task.reference, expected, rtol=1e-5)
    for number, pair in enumerate(PAIRS):
        for place, name in enumerate(("chosen", "rejected")):
            example = examples.example(number, place)
            text = trainer.tokenizer.decode(example.ids, skip_special_tokens=True)
            assert text == pair["prompt"] + pair[name]
            said = example.ids[example.loss_mask]
            assert trainer.tokenizer.decode(said, skip_special_tokens=True) == pair[name]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "simpo", "orpo"])
def test_cutting_a_step_into_batches_changes_nothing(data, tmp_path, loss_type):
    whole = start(data, tmp_path / "whole", batch_size=6, loss_type=loss_type)
    moved(whole)
    ways = cuts(whole.task.examples, [6], [2, 6], [1, 2, 3, 4, 5, 6])
    (first_loss, first), *others = however_cut(whole.task, whole.model, ways)
    for loss, metrics in others:
        assert loss == pytest.approx(first_loss, rel=1e-5)
        assert metrics == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_run_that_was_interrupted_ends_bit_for_bit(data, tmp_path, lora_r):
    options = {"lora_r": lora_r, "grad_accum": 2, "val_fraction": 0.3, "eval_every": 2}
    ends_bit_for_bit(partial(start, data), tmp_path, (1, 4), **options)


def test_a_reference_that_is_gone_is_made_again_from_the_base(data, tmp_path):
    start(data, tmp_path / "run", steps=3).run()
    path = tmp_path / "run" / REFERENCE_FILE
    with np.load(path) as saved:
        before = saved["logps"]
    for steps, damage in ((5, path.unlink), (6, lambda: path.write_bytes(b"PK half"))):
        damage()
        again = Trainer.resume(tmp_path / "run", {"steps": steps})
        np.testing.assert_array_equal(again.task.reference, before)
        again.run()


def test_what_the_reference_file_can_not_be(data, tmp_path):
    start(data, tmp_path / "whole", steps=1, lora_r=0).run()
    path = tmp_path / "whole" / REFERENCE_FILE
    good = path.read_bytes()

    def resume():
        return Trainer.resume(tmp_path / "whole", {"steps": 2})

    plain, text = io.BytesIO(), io.BytesIO()
    np.save(plain, np.zeros((6, 2)))
    np.savez(text, logps=np.full((6, 2), "a"), tokens="b")
    for damaged in (good[:50], b"", b"x" * 99, plain.getvalue(), text.getvalue()):
        path.write_bytes(damaged)
        refused(resume, "is damaged .*put a copy of it back", path)
    np.savez(path, logps=np.zeros((2, 2)), tokens="of other pairs")
    refused(resume, "is not of the pairs that the run began with", path)
    path.unlink()
    refused(resume, "is missing, which holds what the model that the run began as", path)


def test_held_out_pairs_decide_and_need_no_gradients(data, tmp_path):
    trainer = start(data, tmp_path / "run", val_data=data, steps=4, eval_every=2)
    assert str(trainer.task) == "6 preferences to train on, 6 held out"
    trainer.run()
    reports = [r for r in logged(tmp_path / "run") if r["val_loss"] is not None]
    assert reports[-1]["val_loss"] < reports[0]["val_loss"] < math.log(2)
    assert trainer.best_loss == min(r["val_loss"] for r in reports)
    _, metadata = read_safetensors(tmp_path / "run/checkpoint.safetensors")
    assert '"kind": "dpo"' in metadata["training"]


def test_a_prompt_that_is_missing_is_what_both_begin_with(tmp_path):
    texts = {"chosen": "To be, or not", "rejected": "To be, or nothing"}
    messages = {"chosen": talk("Who?", "I."), "rejected": talk("Who?", "Nobody.")}
    for fields, prompt in ((texts, "To be, or"), (messages, None)):
        trainer = start(write_lines(tmp_path / "a.jsonl", fields), tmp_path / f"run {prompt}")
        chosen, rejected = (trainer.task.examples.example(0, place) for place in (0, 1))
        split = int(np.argmax(chosen.loss_mask))
        np.testing.assert_array_equal(chosen.ids[:split], rejected.ids[:split])
        if prompt is not None:
            assert trainer.tokenizer.decode(chosen.ids[:split]) == prompt
            whole = trainer.tokenizer.encode(texts["chosen"])
            assert chosen.ids.tolist()[: len(whole)] == whole  # cut where a token ends
        trainer.lock.release()


def test_a_prompt_beside_whole_conversations_is_not_said_twice(tmp_path):
    """As ultrafeedback_binarized has it."""
    said = {"chosen": talk("Who?", "I."), "rejected": talk("Who?", "Nobody.")}
    trainer = start(write_lines(tmp_path / "a.jsonl", {"prompt": "Who?"} | said), tmp_path / "run")
    text = trainer.tokenizer.decode(trainer.task.examples.example(0).ids)
    assert text.count("Who?") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_computed_as_the_policy_is(data, tmp_path, dtype):
    start(data, tmp_path / "run", steps=1, lora_r=0, dtype=dtype).run()
    (first,) = logged(tmp_path / "run")
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)


WRONG = [
    ([{"prompt": "a", "completion": "b"}], "line 1: it has prompt and completion: preferences"),
    ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "line 1: chosen and rejected are the same"),
    ([{"prompt": "a", "chosen": "b"}], "line 1 lacks 'rejected'"),
    (
        [{"prompt": "a", "chosen": "", "rejected": "b"}],
        "line 1: chosen is empty, or says no more than the other",
    ),
    (
        [{"prompt": "a", "chosen": "b", "rejected": [{"role": "assistant", "content": "c"}]}],
        "line 1: of chosen and rejected one is a text, the other messages",
    ),
    (
        [{name: talk(name, "k") for name in ("chosen", "rejected")}],
        "line 1: chosen and rejected are not two answers to the same messages",
    ),
    ([PAIRS[0], {"prompt": "a", "chosen": 5, "rejected": "b"}], "line 2: chosen is 5, expected"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_no_preference_is_named(tmp_path, lines, message):
    data = write_lines(tmp_path / "a.jsonl", *lines)
    refused(lambda: start(data, tmp_path / "run"), message, data)
    assert not (tmp_path / "run").exists()


def test_pairs_that_are_too_long_are_cut_alike_or_left_out(tmp_path):
    long = {"prompt": "To be, or not to be, that is the question. " * 9}
    lines = [PAIRS[0], long | PAIRS[1] | long, {**PAIRS[2], "rejected": " and" * 90}]
    trainer = start(write_lines(tmp_path / "a.jsonl", *lines), tmp_path / "run", max_length=40)
    examples = trainer.task.examples
    assert len(examples) == 2
    chosen, rejected = (examples.example(1, place) for place in (0, 1))
    assert max(len(chosen.ids), len(rejected.ids)) == 40
    split = int(np.argmax(chosen.loss_mask))
    np.testing.assert_array_equal(chosen.ids[:split], rejected.ids[:split])


def test_dpo_reaches_the_optimum_that_its_derivation_claims():
    """π* ∝ π_ref exp(r/β), on six completions, where preferences come from r by Bradley–Terry."""
    rng = np.random.default_rng(0)
    ref, rewards, beta = rng.normal(size=6), rng.normal(size=6), 0.5
    log_ref = ref - np.log(np.exp(ref).sum())
    best = log_ref + rewards / beta
    best -= np.log(np.exp(best).sum())
    a, b = (side.ravel() for side in np.meshgrid(np.arange(6), np.arange(6)))
    a, b = a[a != b], b[a != b]
    wins = 1 / (1 + np.exp(rewards[b] - rewards[a]))  # how often a beats b: the pair's weight
    z = ref.copy()
    for _ in range(4000):
        log_p = z - np.log(np.exp(z).sum())
        _, (dchosen, drejected), _ = objectives.dpo(
            log_p[a], log_p[b], log_ref[a], log_ref[b], beta, count=1
        )
        dlog_p = np.bincount(a, wins * dchosen) + np.bincount(b, wins * drejected)
        z -= 0.5 * (dlog_p - np.exp(log_p) * dlog_p.sum())
    log_p = z - np.log(np.exp(z).sum())
    assert np.exp(best) @ (best - log_p) < 1e-3
    assert np.exp(log_ref) @ (log_ref - log_p) > 0.05  # it has gone somewhere


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(data, tmp_path):
    trainer = start(data, tmp_path / "run", lr=1e30, save_every=1)
    with pytest.raises(TrainingError, match=r"at step \d the loss is nan|weights are not finite"):
        trainer.run()
    assert load_checkpoint(tmp_path / "run").optimizer.steps < 6


def test_the_command_line(works, refuses, data, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    new = ("dpo", "--model=shakespeare", "--data", data, "--steps=8", "--log-every=4", "--out")
    _, err = works("tune", *new, out, "--batch-size=3")
    assert "6 preferences to train on" in err
    assert "computing what the reference makes of each completion" in err
    assert "step 8: the reward of chosen answers is " in err
    works("tune", "dpo", "--resume", out, "--steps=9")
    ipo = ("--loss-type=ipo", "--label-smoothing=0.1")
    for flags, message in (
        (("dpo", "--resume", out, "--steps=10", "--beta=0.2"), "--beta 0.2: the run in"),
        (("sft", "--resume", out), "is a run of another kind: resume it with numgpt tune dpo"),
        ((*new, out, "--label-smoothing=0.1"), "holds a checkpoint"),
        ((*new, other, "--gamma=1"), "--gamma 1.0 is not for --loss-type 'sigmoid'"),
        ((*new, other, *ipo), "--label-smoothing 0.1 is not for --loss-type 'ipo'"),
    ):
        assert message in refuses("tune", *flags)
