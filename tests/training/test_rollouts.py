"""Policies that learn from what they wrote themselves: rollouts, rewards, GRPO and PPO as runs."""

import itertools
import json
import math
import re
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from support import fails_at, refused, run_to, talk, write_lines
from training.runs import (
    begin,
    ends_bit_for_bit,
    however_cut,
    logged,
    moved,
    same_end,
    shipped,
    told,
)

import numgpt
from numgpt import objectives
from numgpt.data.finding import PROMPTS_FILE
from numgpt.tokenizer import CharTokenizer
from numgpt.training import GRPOConfig, PPOConfig, RewardConfig, RewardError, Trainer
from numgpt.training.checkpoint import load_checkpoint
from numgpt.training.log import _panels, plot_curve
from numgpt.training.rewards import Completion, named_reward

PROMPTS = [
    {"prompt": "To be", "answer": ", or not to be"},
    {"prompt": "My lord,", "answer": "12"},
    {"prompt": "What"},
    {"prompt": "The king", "answer": "3"},
    {"prompt": "Good", "answer": "morrow"},
]
PAIR = {"prompt": "My lord,", "chosen": " I come", "rejected": " no"}
REWARDS = """
def few_e(prompt, completion, example):
    return 1 - 5 * completion.count("e") / max(1, len(completion))

def long_prompts(prompt, completion, example):
    return float(len(completion)) if len(prompt) > 4 else None

def broken(prompt, completion, example):
    return {}["key"]

def nothing(prompt, completion, example):
    return float("nan")

def several(prompt, completion, example):
    return [1.0, 2.0]

def leaves(prompt, completion, example):
    raise SystemExit(0)

def large(prompt, completion, example):
    return 10 ** 400

def changes(prompt, completion, example):
    example.clear()
    prompt.append(1)
    return 1

def never(prompt, completion, example):
    return None

def same(prompt, completion, example):
    return 1

number = 3
"""


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "prompts.jsonl", *PROMPTS)


@pytest.fixture
def rewards(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def few_e(rewards):
    return f"{rewards}:few_e"


def start(data, out, reward, kind=GRPOConfig, **options):
    usual = {"batch_size": None, "reward": reward, "steps": 4, "grad_accum": 2, "lr": 1e-3}
    usual |= {"max_completion_length": 8} | ({"group_size": 4} if kind is GRPOConfig else {})
    return begin(kind, data, out, **usual | options)


def judge_of(place, pair=PAIR, **options):
    """A reward model that was trained for a step -> its run."""
    data = write_lines(place.with_suffix(".jsonl"), pair)
    run = begin(RewardConfig, data, place, steps=1, **options)
    run.run()
    return run


# --- rollouts ---


def test_the_reward_of_what_is_written_rises(data, tmp_path, few_e):
    trainer = start(data, tmp_path / "run", few_e, steps=24, val_fraction=0.3, eval_every=24)
    assert str(trainer.task) == "4 prompts to train on, 1 held out"
    said = told(trainer)
    records = logged(tmp_path / "run")
    first, last = (np.mean([r["reward"] for r in part]) for part in (records[:4], records[-4:]))
    assert last > first + 0.05
    assert any("reward 0." in line for line in said)
    assert records[-1]["val_loss"] < -0.6
    names = {"reward", "reward_std", "frac_reward_zero_std", "entropy", "clip_ratio/low_mean"}
    names |= {"completions/mean_length", "completions/clipped_ratio", "rewards/few_e/mean"}
    assert names <= records[-1].keys()
    assert abs(records[0]["loss"]) < 1e-6  # with ρ = 1 it is the mean advantage
    assert numgpt.load(tmp_path / "run")[0].adapter is not None
    prompt, text = trainer.task.sample()
    assert prompt in {line["prompt"] for line in PROMPTS}
    assert "\n[reward " in text


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_policy_that_was_sampled_is_the_one_that_trains(data, tmp_path, few_e, temperature):
    trainer = start(data, tmp_path / "run", few_e, temperature=temperature)
    task, model = trainer.task, trainer.model
    moved(trainer)
    batches = task.next_step()
    assert len(batches) == 2
    for batch in batches:
        assert batch.ids.shape[0] == 4  # one prompt, four completions
        logps = model.log_probs(batch.ids, batch.targets, temperature)
        np.testing.assert_allclose(batch.old_logps, logps, atol=2e-5)
        assert (batch.ids[:, 0] == batch.ids[0, 0]).all()
        last = [np.flatnonzero(row >= 0)[-1] for row in batch.targets]
        np.testing.assert_array_equal(batch.lengths, np.array(last) + 1)
        texts = [trainer.tokenizer.decode(row[row >= 0]) for row in batch.targets]
        expected = [1 - 5 * text.count("e") / max(1, len(text)) for text in texts]
        assert batch.rewards == pytest.approx(expected)
        advantages = objectives.group_advantages(batch.rewards, 4)
        np.testing.assert_allclose(batch.advantages, advantages, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": "grpo", "beta": 0.2},
        {"loss_type": "dr_grpo", "beta": 0.2, "kl": "k3", "scale_rewards": "none"},
        {"loss_type": "bnpo", "level": "sequence", "epsilon_high": 0.5},
        {"beta": 0.2, "kl": "reward", "scale_rewards": "batch"},
        {"entropy_coef": 0.1},
    ],
    ids=lambda options: ",".join(map(str, options.values())) or "default",
)
def test_a_step_is_that_of_the_objective_however_it_is_cut(data, tmp_path, few_e, options):
    trainer = start(data, tmp_path / "run", few_e, batch_size=2, **options)
    task, model, config = trainer.task, trainer.model, trainer.config
    moved(trainer)
    batches = task.next_step()
    moved(trainer, 0.01)  # so that ratios are not 1
    parts = [(batch, row) for batch in batches for row in range(len(batch.ids))]
    logps = [model.log_probs(b.ids[row : row + 1], b.targets[row : row + 1])[0] for b, row in parts]
    width = max(map(len, logps))

    def wide(rows):
        return np.stack([np.pad(row, (0, width - len(row))) for row in rows]).astype(np.float64)

    mask = wide([b.mask[row] for b, row in parts]) > 0
    old = wide([b.old_logps[row] for b, row in parts])
    reference, rewards = None, np.concatenate([b.rewards for b in batches])
    if config.beta:
        base, _ = numgpt.load("shakespeare")
        reference = wide(
            [base.log_probs(b.ids[r : r + 1], b.targets[r : r + 1])[0] for b, r in parts]
        )
        if config.kl == "reward":
            rewards = rewards - config.beta * ((old - reference) * mask).sum(axis=1)
    advantages = objectives.group_advantages(rewards, 4, config.scale_rewards)
    given = {name: getattr(config, name) for name in ("epsilon_high", "loss_type", "level")}
    given |= {"beta": 0.0 if config.kl == "reward" else config.beta, "max_length": 8}
    given |= {"corrected_kl": config.kl == "corrected"}
    expected, _, wanted = objectives.grpo(wide(logps), old, advantages, mask, reference, **given)
    cuts = batches, [rows_of(b, [row]) for b, row in parts]
    found = however_cut(task, model, cuts, rel=2e-5)
    for loss, metrics in found:
        bonus = config.entropy_coef * metrics.get("entropy", 0)
        assert loss + bonus == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for name, value in wanted.items() if mask.any() else ():
            assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6)
    groups, metrics = np.concatenate([b.rewards for b in batches]).reshape(-1, 4), found[0][1]
    assert metrics["reward"] == pytest.approx(groups.mean())
    assert metrics["reward_std"] == pytest.approx(groups.std(axis=1, ddof=1).mean())


@pytest.mark.parametrize("kind", [GRPOConfig, PPOConfig])
def test_the_bonus_raises_entropy(data, tmp_path, few_e, kind):
    trainer = start(data, tmp_path / "run", few_e, kind, batch_size=4, entropy_coef=1.0)
    task, model = trainer.task, trainer.model
    moved(trainer)
    (batch, *_) = task.next_step()
    batch.advantages[...] = 0  # nothing else is to be learnt of the policy
    entropies = []
    for _ in range(3):
        totals = task.totals(model, [batch])
        sums, gradients = task.gradients(model, batch, totals, None)
        entropies.append(sums["entropy" if kind is GRPOConfig else "objective/entropy"])
        for name, array in model.adapter.parameters.items():
            array -= 0.02 * gradients[name] / np.abs(gradients[name]).max().clip(1e-9)
    assert entropies[0] < entropies[1] < entropies[2]


def rows_of(batch, rows):
    """Some of a batch's completions, by themselves."""
    arrays = {
        name: array[rows] for name, array in vars(batch).items() if isinstance(array, np.ndarray)
    }
    told = batch.told if rows == [0] else {}  # which is told once
    return type(batch)(**arrays, told=told)


def test_cut_off_completions_can_be_left_out(data, tmp_path, few_e):
    trainer = start(data, tmp_path / "run", few_e, mask_truncated=True)
    batches = trainer.task.next_step()
    lengths = [batch.mask.sum(axis=1) for batch in batches]
    assert (np.concatenate(lengths) < 8).all()  # none has come to the end of its own accord, or did
    totals = trainer.task.totals(trainer.model, batches)
    sums, _ = trainer.task.gradients(trainer.model, batches[0], totals, None)
    assert math.isfinite(sums["loss"])


@pytest.mark.parametrize("kind", [GRPOConfig, PPOConfig])
@pytest.mark.parametrize("batches_masked", [1, 2])
def test_a_batch_of_which_nothing_counts(data, tmp_path, few_e, kind, batches_masked):
    trainer = start(data, tmp_path / "run", few_e, kind, batch_size=2)
    task, model = trainer.task, trainer.model
    batches = task.next_step()
    for batch in batches[:batches_masked]:
        batch.targets[...] = -100
    totals, gradients, sums = task.totals(model, batches), None, {}
    for place, batch in enumerate(batches):
        part, gradients = task.gradients(model, batch, totals, gradients)
        if place < batches_masked:
            assert part["loss"] == 0
            assert not gradients.flat.any()
        sums = {name: sums.get(name, 0) + value for name, value in part.items()}
    assert all(math.isfinite(value) for value in task.metrics(sums).values())
    assert bool(gradients.flat.any()) == (batches_masked == 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_r": 0, "lr": 1e-4},
        {"iterations": 2, "beta": 0.1},
        {"kind": PPOConfig, "iterations": 2},
        {"kind": PPOConfig, "iterations": 2, "lora_r": 0, "lr": 1e-4},
    ],
)
def test_a_run_that_was_interrupted_ends_bit_for_bit(data, tmp_path, few_e, options):
    options = {"steps": 4, "val_fraction": 0.3, "eval_every": 2} | options

    def resumed(trainer):  # of two steps with the same completions, after the first
        assert bool(trainer.state.made) == ("iterations" in options)

    begin = partial(start, data, reward=few_e)
    ends_bit_for_bit(begin, tmp_path, (1, 3), resumed, **options)


def test_a_step_of_ppo_is_that_of_the_objective_however_it_is_cut(data, tmp_path, few_e):
    trainer = start(data, tmp_path / "run", few_e, PPOConfig, batch_size=2, lam=0.8, gamma=0.9)
    task, model = trainer.task, trainer.model
    model.score_head.weight[...] = np.random.default_rng(0).normal(0, 0.05, (1, 240))
    moved(trainer)
    batches = task.next_step()
    base, _ = numgpt.load("shakespeare")
    kept = []
    for batch in batches:
        np.testing.assert_allclose(batch.old_values, model.values(batch.ids), atol=1e-5)
        reference = base.log_probs(batch.ids, batch.targets)
        by_token = objectives.token_rewards(
            batch.rewards, batch.old_logps, reference, batch.mask, 0.05
        )
        kept.append(objectives.gae(by_token, batch.old_values, batch.mask, 0.9, 0.8))
        np.testing.assert_allclose(batch.returns * batch.mask, kept[-1][1] * batch.mask, atol=1e-4)
    counted = np.concatenate([a[b.mask] for (a, _), b in zip(kept, batches, strict=True)])
    white = (counted - counted.mean()) / counted.std(ddof=1)
    found = np.concatenate([batch.advantages[batch.mask] for batch in batches])
    np.testing.assert_allclose(found, white, atol=1e-3)
    moved(trainer, 0.01)
    model.score_head.weight[...] *= 1.1
    count, expected = len(counted), 0.0
    for b in batches:
        logps, values = model.log_probs(b.ids, b.targets), model.values(b.ids)
        expected += objectives.ppo(logps, b.old_logps, b.advantages, b.mask, 0.2, count)[0]
        expected += 0.1 * objectives.value(values, b.old_values, b.returns, b.mask, 0.2, count)[0]
    cuts = batches, [rows_of(b, [row]) for b in batches for row in range(len(b.ids))]
    for loss, _ in however_cut(task, model, cuts, rel=2e-5):
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert "score.weight" in model.gradients


def test_the_value_head_stays_with_the_run(data, tmp_path, few_e):
    for lora_r in (4, 0):
        out = tmp_path / f"run-{lora_r}"
        trainer = start(data, out, few_e, PPOConfig, steps=2, lora_r=lora_r, val_fraction=0.3)
        trainer.run()
        for place in (out, out / "last"):
            if place.exists():
                assert numgpt.load(place)[0].score_head is None
        assert load_checkpoint(out).model.score_head.weight.any()
        names = {"objective/kl", "objective/entropy", "loss/value_avg", "val/clipfrac_avg"}
        assert names | {"reward", "policy/clipfrac_avg"} <= logged(out)[0].keys()


def test_a_kill_in_the_middle_of_a_rollout_costs_nothing(data, tmp_path, few_e, monkeypatch):
    start(data, tmp_path / "whole", few_e, save_every=1).run()
    trainer = start(data, tmp_path / "killed", few_e, save_every=1)
    fails_at(monkeypatch, trainer.task, "rewarded", 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer.lock.release()
    trainer = Trainer.resume(tmp_path / "killed", {"steps": 4})
    assert trainer.optimizer.steps == 2
    trainer.run()
    same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_run_goes_on_with_more_steps(data, tmp_path, few_e):
    start(data, tmp_path / "run", few_e, steps=2).run()
    trainer = Trainer.resume(tmp_path / "run", {"steps": 3})
    trainer.run()
    assert [record["step"] for record in logged(tmp_path / "run")] == [1, 2, 3]
    refused(lambda: Trainer.resume(tmp_path / "run", {"group_size": 2}), "cannot change")
    path = tmp_path / "run" / PROMPTS_FILE
    whole = path.read_bytes()
    for content, message in (
        (None, "is missing, which holds what the run is rewarded for"),
        (b"{", "is damaged"),
        (whole[: whole.rindex(b"{")], "is not of the prompts that the run began with"),
        (whole.replace(b'"tokens"', b'"token"'), "is damaged"),
        (whole.replace(b"morrow", b"sorrow"), "is not of the prompts that the run began with"),
        (b"", "is damaged"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        refused(lambda: Trainer.resume(tmp_path / "run", {"steps": 4}), message, path)
        path.write_bytes(whole)


# --- the optimum ---

LETTERS = "abcdef"


@pytest.fixture
def letters(tmp_path):
    """A model of six letters, and what each completion of two is worth."""
    tokenizer = CharTokenizer.train([LETTERS])
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8}
    config = numgpt.GPTConfig(**sizes, vocab_size=tokenizer.vocab_size)
    model = numgpt.GPT(config, seed=3)
    for array in model.parameters.values():
        array *= 6 if array.ndim == 2 else 1  # so that it has preferences of its own
    model.save_pretrained(tmp_path / "letters")
    tokenizer.save_pretrained(tmp_path / "letters")
    path = tmp_path / "letters.py"
    path.write_text(
        "def worth(prompt, completion, example):\n"
        "    return completion.count('b') + 0.5 * (completion == 'ca')\n"
    )
    return str(tmp_path / "letters"), f"{path}:worth"


def distribution(model, tokenizer):
    """log π of each completion of two letters after "a", and its worth."""
    texts = ["".join(two) for two in itertools.product(LETTERS, repeat=2)]
    ids = np.array([tokenizer.encode("a" + text) for text in texts])
    logps = model.log_probs(ids[:, :-1], ids[:, 1:]).sum(axis=1, dtype=float)
    worth = np.array([text.count("b") + 0.5 * (text == "ca") for text in texts])
    return logps - np.logaddexp.reduce(logps), worth


GROUPED = {"group_size": 32, "batch_size": 1, "scale_rewards": "none", "beta": 0.5}
METHODS = {
    "grpo, k1 in the reward": (GRPOConfig, GROUPED | {"kl": "reward"}),
    "grpo, k3 in the loss": (GRPOConfig, GROUPED),
    "ppo": (PPOConfig, {"batch_size": 32, "iterations": 2, "kl_coef": 0.5, "steps": 120}),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_reward_rises_within_the_divergence_that_beta_implies(tmp_path, letters, method):
    """π* ∝ π_ref exp(r / β) has the highest mean reward less β KL: nobody gets more."""
    (directory, worth), (kind, options), beta = letters, METHODS[method], 0.5
    data = write_lines(tmp_path / "a.jsonl", *[{"prompt": "a"}] * 32)
    usual = {"steps": 60, "lr": 5e-3, "lora_r": 0, "max_completion_length": 2, "warmup": 3}
    options = usual | {"grad_accum": 4} | options
    trainer = start(data, tmp_path / "run", worth, kind, model=directory, **options)
    reference, r = distribution(*numgpt.load(directory))
    trainer.run()
    policy, _ = distribution(trainer.model, trainer.tokenizer)
    best = reference + r / beta
    best -= np.logaddexp.reduce(best)

    def value(logps):
        p = np.exp(logps)
        return (p * r).sum(), (p * (logps - reference)).sum()

    reward_best, kl_best = value(best)
    reward, divergence = value(policy)
    reward_before, _ = value(reference)
    optimum = reward_best - beta * kl_best
    assert reward - beta * divergence <= optimum + 1e-9
    assert reward - beta * divergence > reward_before + 0.8 * (optimum - reward_before)
    assert divergence < 1.3 * kl_best


# --- rewards ---


def worth(name, text, prompt="p", **example):
    return named_reward(name)([Completion(prompt, text, {"prompt": prompt} | example)])[0]


@pytest.mark.parametrize(
    ("name", "text", "answer", "expected"),
    [
        ("exact", " yes\n", "yes", 1),
        ("exact", "yes.", "yes", 0),
        ("exact", "7", 7, 1),
        ("number", "It is 1,234.50.", "1234.5", 1),
        ("number", "3 + 4 = 7", "7", 1),
        ("number", "7 or 8", "7", 0),
        ("number", "-3", 3, 0),
        ("number", "none", "7", 0),
        ("number", "7", "seven", math.nan),
        ("regex:^a.*b$", "a\nb", None, 1),
        ("regex:^a", "ba", None, 0),
        ("length:4", "abc", None, 0.75),
        ("length:4", "abcdefghij", None, 0),
        ("json", '{"a": [1]}', None, 1),
        ("json", "{a}", None, 0),
        ("exact", "yes", None, math.nan),
    ],
)
def test_built_in_rewards(name, text, answer, expected):
    example = {} if answer is None else {"answer": answer}
    np.testing.assert_equal(worth(name, text, **example), expected)


def test_rewards_of_several_are_added_and_one_that_does_not_apply_is_left_out(
    data, tmp_path, rewards
):
    names = [f"{rewards}:long_prompts", "exact", "length:20"]
    trainer = start(data, tmp_path / "run", names, reward_weights=["1", "2", "-0.5"], steps=1)
    task = trainer.task
    values = np.array([[1.0, np.nan, np.nan], [0.0, 1.0, np.nan], [0.5, 1.0, np.nan]])
    np.testing.assert_allclose(task.total(values), [0.75, 1.5, np.nan])
    trainer.run()
    (record,) = logged(tmp_path / "run")
    assert record["rewards/length:20/mean"] >= 0
    assert record["rewards/long_prompts/mean"] > 0
    assert task.metrics({"rewards/exact/mean": 6.0, "rewards/exact/scored": 3}) == {
        "rewards/exact/mean": 2.0
    }
    _, text = task.sample()
    assert re.search(r"\n\[reward \S+ \(long_prompts \S+, exact \S+, length:20 \S+\)\]$", text)
    mine = [task.prompts[n]["prompt"] for n in range(5)]
    assert mine == [line["prompt"] for line in PROMPTS]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "broken raised KeyError, for the completion .*: 'key'"),
        ("nothing", "nothing is nan, for the completion"),
        ("several", r"several is \[1.0, 2.0\], for the completion"),
        ("leaves", r"leaves raised SystemExit, for the completion"),
        ("large", r"large is a number of 1329 bits.*: expected a number up to 1e\+09"),
    ],
)
def test_a_reward_that_fails_stops_the_run_after_saving(data, tmp_path, rewards, function, message):
    trainer = start(data, tmp_path / "run", f"{rewards}:few_e", steps=3, save_every=3)
    right, count = trainer.task.rewards, itertools.count()
    wrong = [named_reward(f"{rewards}:{function}")]
    rewarded = trainer.task.rewarded

    def failing(*arguments):
        trainer.task.rewards = wrong if next(count) == 1 else right
        return rewarded(*arguments)

    trainer.task.rewarded = failing
    with pytest.raises(RewardError, match=message) as error:
        trainer.run()
    assert len(str(error.value).splitlines()) == 1
    assert (error.value.__cause__ is not None) == (function in ("broken", "leaves"))
    state = load_checkpoint(tmp_path / "run")
    assert state.optimizer.steps == 1
    trainer = Trainer.resume(tmp_path / "run")
    trainer.run()
    assert trainer.optimizer.steps == 3


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("exactly", "there is no such reward: expected exact, number"),
        ("regex:(", "no regular expression"),
        ("length:0", "there is no such reward"),
        ("missing.py:f", r"missing\.py:f': there is no such file"),
        ("{mine}:other", "has no function other"),
        ("{mine}:number", "has no function number"),
        ("{wrong}:f", r"fails to import \(ModuleNotFoundError: .*'abcde', in line 1\)"),
        ("{model}", "holds no reward model"),
    ],
)
def test_a_reward_that_there_is_not_is_refused_before_anything_is_written(
    data, tmp_path, rewards, reward, message
):
    (tmp_path / "wrong.py").write_text("import abcde\n")
    numgpt.load("shakespeare")[0].save_pretrained(tmp_path / "model")
    places = {"mine": rewards, "wrong": tmp_path / "wrong.py", "model": tmp_path / "model"}
    name = reward.format(**places) if "(" not in reward else reward
    refused(lambda: start(data, tmp_path / "run", name), message)
    assert not (tmp_path / "run").exists()


def test_a_reward_sees_no_special_tokens(data, tmp_path, rewards):
    trainer = start(data, tmp_path / "run", f"{rewards}:few_e")
    task, seen = trainer.task, []
    task.rewards = [lambda completions: seen.extend(completions) or np.zeros(len(completions))]
    ended = SimpleNamespace(made=[*trainer.tokenizer.encode("I come"), *task.end_ids()])
    assert task.end_ids()
    task.rewarded(np.array([1]), [ended])
    assert [completion.text for completion in seen] == ["I come"]


def test_a_reward_may_import_what_stands_beside_it_and_be_interrupted(tmp_path):
    (tmp_path / "beside_it.py").write_text("WORTH = 4\n")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from beside_it import WORTH\n\ndef f(prompt, completion, example):\n"
        "    if completion == 'stop':\n        raise KeyboardInterrupt\n    return WORTH\n"
    )
    before = list(sys.path)
    try:
        assert worth(f"{mine}:f", "go") == 4
        with pytest.raises(KeyboardInterrupt):
            worth(f"{mine}:f", "stop")
        (tmp_path / "wait.py").write_text("raise KeyboardInterrupt\n")
        with pytest.raises(KeyboardInterrupt):
            named_reward(f"{tmp_path}/wait.py:f")
    finally:
        sys.modules.pop("beside_it", None)
    assert sys.path == before


def test_a_reward_model_rewards(data, tmp_path):
    judge_of(tmp_path / "judge")
    judge = str(tmp_path / "judge")
    trainer = start(data, tmp_path / "run", judge, steps=1)
    batch = trainer.task.next_step()[0]
    model, tokenizer = numgpt.load(judge)
    row, target = batch.ids[0], batch.targets[0]
    asked = row[: int(np.argmax(target >= 0)) + 1].tolist()
    said = tokenizer.decode(target[target >= 0], skip_special_tokens=True)
    whole = asked + tokenizer.encode(said, continues=True) + [tokenizer.eos_token_id]
    assert batch.rewards[0] == pytest.approx(model.scores([whole])[0], rel=1e-5)
    trainer.run()
    assert math.isfinite(worth(judge, "yes", talk("My lord,")))
    assert math.isfinite(worth(judge, "yes " * 300))  # cut from the left


def test_rewards_that_never_differ_are_told_of(data, tmp_path, rewards):
    trainer = start(data, tmp_path / "run", f"{rewards}:same", steps=12, max_completion_length=1)
    message = "10 rollouts have taught nothing: all completions"
    assert sum(message in line for line in told(trainer)) == 1
    assert logged(tmp_path / "run")[-1]["frac_reward_zero_std"] == 1


@pytest.mark.live("reasoning_gym")
def test_a_task_of_reasoning_gym_brings_prompts_and_reward(tmp_path):
    options = {"task": "reasoning_gym:chain_sum,max_digits=1", "task_size": 20, "val_fraction": 0.2}
    trainer = start(None, tmp_path / "run", None, **options, steps=1)
    task = trainer.task
    questions = [prompt["prompt"][0]["content"] for prompt in task.prompts]
    assert len(set(questions)) == len(questions)
    asked = task.prompts[0]
    right = Completion(asked["prompt"], f"So <answer>{asked['answer']}</answer>.", asked)
    wrong = right._replace(text="no")
    np.testing.assert_array_equal(task.rewards[0]([right, wrong]) == 1, [True, False])
    task.rewards[0].dataset.score_answer = lambda answer, entry: 1 / 0  # as some do of a bad answer
    np.testing.assert_array_equal(task.rewards[0]([right]), [0.0])
    del task.rewards[0].dataset.score_answer
    trainer.run()
    assert "rewards/reasoning_gym:chain_sum,max_digits=1/mean" in logged(tmp_path / "run")[0]
    for name, message in (
        ("chain_sum", "expected reasoning_gym:NAME or"),
        ("reasoning_gym:nosuch", "nosuch"),
        ("reasoning_gym:chain_sum,terms=2", "is refused: .*unexpected keyword argument 'terms'"),
        ("reasoning_gym:chain_sum,max_terms=a", "is refused: "),
        ("reasoning_gym:chain_sum,seed=2", "give task_size and seed instead"),
        ("reasoning_gym:chain_sum,min_terms", "expected reasoning_gym:NAME or"),
    ):
        refused(lambda n=name: start(None, tmp_path / "no", None, task=n), message)


OPTIONS = [
    ({"kl": "k3"}, "kl='k3' has no effect without beta"),
    ({"data": None, "task": "reasoning_gym:chain_sum", "val_data": "a.jsonl"}, "val_data='a.jsonl"),
    ({"reward": None}, "give reward, what completions are rewarded for"),
    ({"data": None}, "give data, the prompts, or task reasoning_gym:NAME"),
    ({"task": "reasoning_gym:chain_sum"}, "task='reasoning_gym:chain_sum' cannot be combined"),
    ({"group_size": 1}, "group_size=1: expected a whole number from 2"),
    ({"reward_weights": "a"}, "reward_weights='a': expected a number for each reward"),
    ({"reward_weights": ["1", "2"]}, "expected 1, a number for each reward"),
    ({"reward_weights": "0"}, "reward_weights='0': one at least must not be 0"),
    ({"task_size": 5}, "task_size=5 is of a task, and none is given"),
    ({"max_completion_length": 256}, "max_completion_length=256 leaves no room for a prompt"),
    ({"temperature": 0.0}, "temperature=0.0: expected a number above 0"),
    ({"loss_type": "ppo"}, "loss_type='ppo': expected dapo or grpo"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_cannot_be(data, tmp_path, few_e, options, message):
    usual = {"data": data, "out": tmp_path / "r", "reward": few_e}
    refused(lambda: start(**usual | options), message)
    assert not (tmp_path / "r").exists()


PROMPT_LINES = [
    ({"prompt": ""}, "line 1: its prompt is empty: there is nothing to continue"),
    ({"text": "a"}, "line 1: it has text: what is to be continued has the key prompt"),
    ({"prompt": talk("a", "b")[1:]}, "line 1: its prompt ends with the assistant's message"),
]


@pytest.mark.parametrize(("line", "message"), PROMPT_LINES)
def test_prompts_that_cannot_be(tmp_path, few_e, line, message):
    data = write_lines(tmp_path / "wrong.jsonl", line)
    refused(lambda: start(data, tmp_path / "run", few_e), message)
    assert json.loads((tmp_path / "wrong.jsonl").read_text()) == line


def test_a_reward_that_there_is_not_is_told_before_the_data_are_read(tmp_path):
    data = write_lines(tmp_path / "wrong.jsonl", {"text": "no prompt"})
    refused(lambda: start(data, tmp_path / "run", "exat"), "reward='exat': there is no such")


def test_rewards_that_are_called_alike_are_told_apart(data, tmp_path, rewards):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(REWARDS)
    trainer = start(data, tmp_path / "run", [f"{rewards}:few_e", f"{other}/mine.py:few_e"])
    assert trainer.task.reward_names == ["few_e-1", "few_e-2"]


@pytest.mark.live("matplotlib")
def test_the_curve_has_a_panel_for_what_is_measured(data, tmp_path, few_e):
    from matplotlib import image

    start(data, tmp_path / "run", few_e, steps=2).run()
    records = logged(tmp_path / "run")
    panels = _panels(records)
    assert next(iter(panels)) == "loss"
    assert set(panels["clip_ratio"].values()) == {"low_mean", "high_mean"}
    assert {"reward", "reward_std", "rewards", "completions", "entropy"} <= panels.keys()
    assert _panels([{"step": 1, "loss": 2.0, "lr": 0.1}]).keys() == {"loss (nats per token)"}
    plot_curve(records, tmp_path / "loss.png")
    assert image.imread(tmp_path / "loss.png").shape[1] > 1200


# --- what reviewers found ---


def test_a_judge_reads_what_it_was_trained_on(data, tmp_path):
    """Of texts and of conversations, the tokens that are scored are those of its training."""
    prompt, *chosen = talk("Who comes?", "The king")
    _, *rejected = talk("Who comes?", "No one")
    chats = {"prompt": [prompt], "chosen": chosen, "rejected": rejected}
    for name, pair, said in (("chats", chats, chosen[0]["content"]), ("texts", PAIR, " I come")):
        trained = judge_of(tmp_path / name, pair).task.examples.example(0, 0).ids
        judge = named_reward(str(tmp_path / name))
        completion = Completion(pair["prompt"], said, {})
        assert judge([completion])[0] == pytest.approx(judge.model.scores([trained])[0], rel=1e-6)
        empty, long = completion._replace(text=""), completion._replace(text=" so" * 400)
        assert np.isfinite(judge([empty, completion, long])).all()


def test_the_reference_is_not_what_the_run_writes(data, tmp_path, few_e):
    base = shipped(tmp_path / "base")
    options = {"model": base, "lora_r": 0, "beta": 0.1, "steps": 2}
    refused(
        lambda: start(data, base, few_e, overwrite=True, **options),
        "what would be replaced, and the run",
    )
    trainer = start(data, tmp_path / "run", few_e, **options)
    run_to(trainer, 1)
    model, _ = numgpt.load(base, mmap=False)
    model.parameters["wte"][0, 0] += 1
    model.save_pretrained(base)
    trainer = Trainer.resume(tmp_path / "run")
    with pytest.raises(ValueError, match="has other weights than the run began with: put those"):
        trainer.run()


@pytest.mark.parametrize("when", ["validation", "sample"])
def test_a_reward_that_fails_between_steps_is_saved_too(data, tmp_path, rewards, when):
    options = {"val_fraction": 0.3, "eval_every": 2} if when == "validation" else {}
    options |= {"sample_every": 2} if when == "sample" else {}
    trainer = start(data, tmp_path / "run", f"{rewards}:few_e", save_every=4, **options)
    right, complete = trainer.task.rewards, trainer.task.complete

    def failing(prompts, rngs):
        greedy = rngs[0] is None
        trainer.task.rewards = [named_reward(f"{rewards}:broken")] if greedy else right
        return complete(prompts, rngs)

    trainer.task.complete = failing
    with pytest.raises(RewardError):
        trainer.run()
    assert load_checkpoint(tmp_path / "run").optimizer.steps == 2


def test_each_prompt_is_seen_as_often_as_is_said(data, tmp_path, few_e):
    options = {"steps": None, "grad_accum": 1, "batch_size": 1, "epochs": 2.0}
    for iterations in (1, 3):
        trainer = start(data, tmp_path / f"{iterations}", few_e, iterations=iterations, **options)
        assert trainer.config.steps == 2 * 5 * iterations


def test_a_reward_whose_field_no_line_has_is_refused(tmp_path):
    data = write_lines(tmp_path / "no.jsonl", {"prompt": "a", "Answer": "b"})
    refused(lambda: start(data, tmp_path / "run", "exact"), "needs 'answer', which no line")


@pytest.mark.parametrize("kind", [GRPOConfig, PPOConfig])
def test_what_no_reward_applies_to_has_no_part(data, tmp_path, kind):
    trainer = start(data, tmp_path / "run", "exact", kind, batch_size=2, entropy_coef=0.1)
    batches = trainer.task.next_step()
    for batch in batches:
        asked = {row: np.isnan(reward) for row, reward in enumerate(batch.rewards)}
        for row, without in asked.items():
            assert batch.mask[row].any() == (not without)
            assert batch.old_logps[row].any() == (not without)
    assert np.isnan(np.concatenate([batch.rewards for batch in batches])).any()


def test_groups_of_equal_rewards_are_told_whatever_rounding_does(data, tmp_path, rewards):
    trainer = start(data, tmp_path / "run", f"{rewards}:same", group_size=6)
    found = trainer.task._told(*made_up(trainer, np.full(6, 0.1)))
    assert found["frac_reward_zero_std"] == found["groups"] == 1
    found = trainer.task._told(*made_up(trainer, np.array([0.1] * 5 + [0.2])))
    assert found["frac_reward_zero_std"] == 0


def made_up(trainer, rewards):
    numbers = np.zeros(len(rewards), int)
    made = trainer.task.complete(numbers, [None] * len(rewards))
    return made, rewards, rewards[None]


def test_a_run_goes_on_from_anywhere(data, tmp_path, rewards, monkeypatch):
    monkeypatch.chdir(rewards.parent)
    start(data, tmp_path / "run", "mine.py:few_e", steps=1).run()
    monkeypatch.chdir("/")
    Trainer.resume(tmp_path / "run", {"steps": 2}).run()
    monkeypatch.chdir(rewards.parent)
    Trainer.resume(tmp_path / "run", {"steps": 3, "reward": "mine.py:few_e"})


def test_a_reward_may_be_of_any_module_and_number(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nimport numpy as np\n"
        "@dataclasses.dataclass\nclass Held:\n    value: int\n"
        "def score(prompt, completion, example):\n    return np.isclose(Held(1).value, 1)\n"
    )
    assert worth(f"{path}:score", "x") == 1
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"fails to import \(SyntaxError: .*\)$"):
        named_reward(f"{tmp_path / 'bad.py'}:f")


def test_a_reward_cannot_change_what_it_is_given(tmp_path, rewards):
    asked = talk("a")
    example = {"prompt": asked}
    named_reward(f"{rewards}:changes")([Completion(asked, "b", example)])
    assert example == {"prompt": talk("a")}


def test_a_reward_that_never_applies_is_told_of(data, tmp_path, rewards):
    never = f"{rewards}:never"
    trainer = start(data, tmp_path / "run", never, steps=12, max_completion_length=1)
    assert sum("no reward applied to any completion" in line for line in told(trainer)) == 1
    assert "reward" not in logged(tmp_path / "run")[-1]
    assert trainer.task.sample()[1].endswith("[no reward applies]")
    trainer = start(data, tmp_path / "held", never, steps=1, val_fraction=0.3, eval_every=1)
    with pytest.raises(RewardError, match="no reward applies to any of what is held out"):
        trainer.run()


def test_completions_that_are_all_cut_off_are_told_of(data, tmp_path, few_e):
    options = {"steps": 12, "max_completion_length": 1, "mask_truncated": True}
    trainer = start(data, tmp_path / "run", few_e, **options)
    assert sum("all completions were cut off" in line for line in told(trainer)) == 1


def test_a_judge_is_not_replaced_by_what_it_judges(data, tmp_path):
    judge = tmp_path / "judge"
    judge_of(judge)
    before = sorted(path.name for path in judge.iterdir())
    refused(lambda: start(data, judge, str(judge), overwrite=True), "is what would be replaced")
    assert sorted(path.name for path in judge.iterdir()) == before


def test_a_judge_that_cannot_read_the_prompts_is_refused_at_once(tmp_path, letters):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    judge_of(tmp_path / "judge", pair, model=letters[0], lora_r=0)
    asked = write_lines(tmp_path / "q.jsonl", {"prompt": "What news?"})
    refused(lambda: start(asked, tmp_path / "run", str(tmp_path / "judge")), "does not read such")
    assert not (tmp_path / "run").exists()


def test_the_metrics_of_ppo_are_means_over_all_tokens(data, tmp_path, few_e):
    trainer = start(data, tmp_path / "run", few_e, PPOConfig, batch_size=2)
    task, model = trainer.task, trainer.model
    moved(trainer)
    batches = task.next_step()
    ((loss, metrics),) = however_cut(task, model, [batches])
    entropies = []
    for batch in batches:
        logits = model(batch.ids).astype(np.float64)
        logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        entropies.append(-(np.exp(logp) * logp).sum(axis=-1)[batch.mask])
    entropy = np.concatenate(entropies).mean()
    assert metrics["objective/entropy"] == pytest.approx(entropy, rel=1e-3)
    whole = metrics["loss/policy_avg"] + trainer.config.vf_coef * metrics["loss/value_avg"]
    assert loss == pytest.approx(whole, rel=1e-5, abs=1e-7)
