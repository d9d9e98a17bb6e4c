"""KTO as a run: judged completions, what they are compared with, and what is logged."""

import json
from functools import partial

import numpy as np
import pytest
from support import refused, write_lines
from training.runs import begin, cuts, ends_bit_for_bit, however_cut, logged, moved
from training.test_preferences import PAIRS

import numgpt
from numgpt import objectives
from numgpt.training import KTOConfig, TuneConfig

JUDGED = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "judged.jsonl", *JUDGED)


start = partial(begin, KTOConfig)


def test_good_completions_become_likelier_and_bad_ones_less_likely(data, tmp_path):
    trainer = start(data, tmp_path / "run", steps=16, lr=3e-3)
    assert str(trainer.task) == "12 judged completions to train on"
    trainer.run()
    first, *_, last = logged(tmp_path / "run")
    assert first["loss"] == pytest.approx(0.5, rel=1e-5)  # the policy is the reference, and z 0
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.4
    assert last["rewards/margins"] > 0.5
    assert last["rewards/chosen"] > last["rewards/rejected"]
    assert last["kl"] >= 0
    assert numgpt.load(tmp_path / "run")[0].adapter is not None


def test_each_stands_beside_the_completion_of_another(data, tmp_path):
    trainer = start(data, tmp_path / "run")
    examples, decode = trainer.task.examples, trainer.tokenizer.decode
    for number, line in enumerate(JUDGED):
        other = JUDGED[2 if number < 2 else number - number % 2 - 1]  # of another prompt
        for place, said in enumerate((line["completion"], other["completion"])):
            example = examples.example(number, place)
            text = decode(example.ids, skip_special_tokens=True)
            assert text == line["prompt"] + said
        assert examples.example(number).desirable is line["label"]


def test_a_step_is_that_of_the_objective_however_it_is_cut(data, tmp_path):
    trainer = start(data, tmp_path / "run", desirable_weight=1.5, beta=0.3)
    task, model = trainer.task, trainer.model
    moved(trainer)
    batch = task.examples.padded(np.arange(12))
    logps = model.log_probs(batch.ids, batch.targets).sum(axis=1).astype(float)
    z = objectives.mismatched_kl(logps[12:], task.reference[:, 1])
    labels = np.array([line["label"] for line in JUDGED])
    expected, _, _ = objectives.kto(logps[:12], task.reference[:, 0], labels, z, 0.3, 1.5)
    found = however_cut(task, model, cuts(task.examples, [12], [5, 12], [1, 2, 7, 12]))
    first = found[0][1]
    for loss, metrics in found:
        assert loss == pytest.approx(expected, rel=1e-5)
        assert metrics == pytest.approx(first, rel=1e-4, abs=1e-5)
    good = labels & True
    gained = 0.3 * (logps[:12] - task.reference[:, 0])
    assert first["rewards/chosen"] == pytest.approx(gained[good].mean(), rel=1e-4)
    assert first["rewards/rejected"] == pytest.approx(gained[~good].mean(), rel=1e-4)
    assert first["kl"] == pytest.approx(z, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("lora_r", [4, 0])
def test_a_run_that_was_interrupted_ends_bit_for_bit(data, tmp_path, lora_r):
    options = {"lora_r": lora_r, "grad_accum": 2, "val_fraction": 0.25, "eval_every": 2}
    ends_bit_for_bit(partial(start, data), tmp_path, (2,), **options)


WRONG = [
    ([PAIRS[0]], "line 1: it has prompt, chosen and rejected: completions that were judged"),
    ([JUDGED[0]], "data has completions of one prompt alone: KTO compares each"),
    ([JUDGED[0], {"prompt": "a", "completion": "b"}], "line 2 has prompt and completion, the"),
    ([JUDGED[0], JUDGED[2] | {"completion": ""}], "line 2: the completion is empty"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_was_not_judged_is_named(tmp_path, lines, message):
    data = write_lines(tmp_path / "a.jsonl", *lines)
    refused(lambda: start(data, tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_a_long_completion_takes_no_other_with_it(tmp_path):
    long = {"completion": " and" * 90}
    lines = [JUDGED[0], JUDGED[2] | long, JUDGED[4], JUDGED[6]]
    trainer = start(write_lines(tmp_path / "a.jsonl", *lines), tmp_path / "run", max_length=20)
    examples = trainer.task.examples
    assert len(examples) == 3  # the long one alone is left out
    assert len(examples.example(0, 1).ids) == 20  # beside others it is cut
    assert examples.example(0, 1).loss_mask.any()


def test_supervised_tuning_does_not_learn_what_was_judged_bad(data, tmp_path):
    refused(
        lambda: begin(TuneConfig, data, tmp_path / "run"), "it has prompt, completion and label"
    )


def test_the_command_line(works, refuses, data, tmp_path):
    given = ("--model=shakespeare", "--data", data, "--out", tmp_path / "run", "--steps=4")
    _, err = works("tune", "kto", *given, "--batch-size=4")
    assert "the reward of chosen answers is" in err
    assert json.loads((tmp_path / "run/adapter_config.json").read_text())["r"] == 8
    err = refuses("tune", "kto", *given, "--desirable-weight=0")
    assert "--desirable-weight 0.0: expected a number above 0" in err
