"""Rewards alone: SmolLM2-135M-Instruct by GRPO with LoRA on two tasks of reasoning-gym.

A reward that is never given teaches nothing, and the model as it comes answers almost no question
in the form that a checker accepts. So first a short supervised tuning on questions of their own
shows the form (an answer and nothing else), and is not counted as progress; GRPO then goes on from
there, by the checker's reward alone:

    sums        sums and differences of two numbers of up to two digits: right from the beginning
                some of the time, and the reward is 1 only then (0 for all else here: exact)
    reversal    three to five words in reverse order, whose checker gives degrees

Measured before, after the form and after GRPO, greedily, on three sets of questions of which no
run has seen any; and what was lost: the perplexity of a text that has nothing to do with it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "smollm2"
TASKS = {
    "sums": "reasoning_gym:chain_sum,min_terms=2,max_terms=2,max_digits=2",
    "reversal": "reasoning_gym:word_sequence_reversal,min_words=3,max_words=5",
}
SEEDS = (101, 102, 103)  # of the questions that are held out
HELD_OUT, FORM, TRAINED = 100, 80, 600  # questions
LONGEST = 24  # tokens of an answer
STEPS = 60
OPTIONS = {"steps": STEPS, "lr": 2e-4, "group_size": 8, "grad_accum": 4, "warmup": 3}


def main(threads: int, out: str | None = None) -> None:
    """`out`: a directory that keeps the runs and their logs."""
    import numgpt

    numgpt.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(out or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        for name in TASKS:
            study(name, directory)


def study(name: str, directory: Path) -> None:
    import numgpt

    held_out = [questions(name, seed, HELD_OUT) for seed in SEEDS]
    seen = {entry["question"] for entries in held_out for entry in entries}
    rows = {"as it comes": measure(name, numgpt.load(MODEL), held_out)}
    began = time.perf_counter()
    form = directory / f"{name}-form"
    teach_form(name, form, seen)
    base = directory / f"{name}-base"
    model, tokenizer = numgpt.load(form)
    model.merge_adapter()
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows["after the form"] = measure(name, (model, tokenizer), held_out)
    rows["after the form"]["seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    learn(name, base, directory / name, seen)
    seconds = time.perf_counter() - began
    rows["after GRPO"] = measure(name, numgpt.load(directory / name), held_out)
    rows["after GRPO"]["seconds"] = seconds
    tell(name, rows)
    (directory / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def questions(name: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Questions of a task, each once."""
    from numgpt.training.rewards import gym_dataset

    found: dict[str, dict[str, Any]] = {}
    dataset = gym_dataset(TASKS[name], 4 * count, seed)
    for index in range(4 * count):
        entry = dataset[index]
        found.setdefault(entry["question"], entry)
    return list(found.values())[:count]


def asked(entry: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": entry["question"]}]


def teach_form(name: str, out: Path, without: set[str]) -> None:
    """A few questions with their answers."""
    from numgpt.training import Trainer, TuneConfig

    data = out.parent / f"{name}-form.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for entry in questions(name, 7, FORM):
            if entry["question"] not in without:
                answer = {"role": "assistant", "content": entry["answer"]}
                file.write(json.dumps({"messages": [*asked(entry), answer]}) + "\n")
    config = TuneConfig(
        model=MODEL, data=str(data), epochs=1.0, batch_size=8, lr=2e-4, sample_every=0, answers=0
    )
    Trainer.start(config, out, overwrite=True).run(report=told)


def learn(name: str, base: Path, out: Path, without: set[str]) -> None:
    """GRPO by what the checker says, on questions of another seed."""
    from numgpt.training import GRPOConfig, Trainer

    data = out.parent / f"{name}.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for index, entry in enumerate(questions(name, 1, TRAINED)):
            if entry["question"] not in without:
                line = {"prompt": asked(entry), "answer": entry["answer"], "index": index}
                file.write(json.dumps(line) + "\n")
    reward = "exact"
    if name == "reversal":
        (out.parent / "reversal.py").write_text(REWARD.format(task=TASKS[name]))
        reward = f"{out.parent / 'reversal.py'}:score"
    config = GRPOConfig(
        model=str(base),
        data=str(data),
        reward=reward,
        max_completion_length=LONGEST,
        log_every=2,
        save_every=20,
        sample_every=20,
        **OPTIONS,
    )
    Trainer.start(config, out, overwrite=True).run(report=told)


# The reward as a person would write it: a function in a file.
REWARD = """from numgpt.training.rewards import gym_dataset

DATASET = gym_dataset({task!r}, 1, 0)


def score(prompt, completion, example):
    entry = {{"answer": example["answer"], "metadata": {{}}}}
    return DATASET.score_answer(completion.strip(), entry)
"""


def measure(name: str, loaded: tuple, held_out: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Right answers of each set, the mean reward, and the perplexity of a general text."""
    from benchmarks.desk import general_perplexity
    from numgpt.generation import generate_each
    from numgpt.tokenizer.chat_template import ChatTemplate

    model, tokenizer = loaded
    template = ChatTemplate(tokenizer)
    right, shown = [], []
    for entries in held_out:
        count = 0
        for first in range(0, len(entries), 16):
            part = entries[first : first + 16]
            prompts = [template.ids(asked(e), add_generation_prompt=True) for e in part]
            made = generate_each(
                model, prompts, max_new_tokens=LONGEST, eos_token_id=template.end_ids(),
                generation_config={},
            )  # fmt: skip
            for ids, prompt, entry in zip(made, prompts, part, strict=True):
                text = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
                count += text == entry["answer"]
                shown.append((entry["question"], entry["answer"], text))
        right.append(count / len(entries))
    perplexity = general_perplexity(model, tokenizer)
    return {"right": right, "perplexity": perplexity, "answers": shown[:4]}


def tell(name: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name} ({TASKS[name]}): {len(SEEDS)} sets of {HELD_OUT} questions\n")
    print("| model | right, each set | mean | perplexity of a general text | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for title, row in rows.items():
        each = ", ".join(f"{share:.0%}" for share in row["right"])
        mean, seconds = statistics.mean(row["right"]), row.get("seconds")
        spent = "" if seconds is None else f"{seconds:.0f}"
        print(f"| {title} | {each} | {mean:.1%} | {row['perplexity']:.2f} | {spent} |")
    for title, row in rows.items():
        for question, answer, text in row["answers"][:2]:
            print(f"{title}: {question!r:.100} -> {text!r:.60} (right: {answer!r})")
    sys.stdout.flush()


def told(record: object) -> None:
    print(record, file=sys.stderr, flush=True)
