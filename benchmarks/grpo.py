"""Rewards alone: SmolLM2-135M-Instruct by GRPO with LoRA on two tasks of reasoning-gym.

A reward that is never given teaches nothing, so the tasks are such that something is right at the
beginning, or that the reward has degrees:

    sums        of two numbers of up to two digits, plus or minus. The reward is that the last
                number said is the answer: the model as it comes gets it a quarter of the time
    reversal    three words in reverse order. The model as it comes never answers in the form that
                is asked for: a short supervised tuning on 80 questions shows it, after which next
                to nothing is right; but the checker gives degrees, for what is nearly right

Measured before and after, greedily, on three sets of questions of which no run has seen any; and
what was lost: the perplexity of a text that has nothing to do with it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Task(NamedTuple):
    """What is asked, whether the form of an answer is shown first, and what is right."""

    source: str
    shows_form: bool
    right: str  # a reward that is 1 or 0


MODEL = "smollm2"
SUMS = Task("reasoning_gym:chain_sum,min_terms=2,max_terms=2,max_digits=2", False, "number")
REVERSAL = Task("reasoning_gym:word_sequence_reversal,min_words=3,max_words=3", True, "exact")
TASKS = {"sums": SUMS, "reversal": REVERSAL}
SEEDS = (101, 102, 103)  # of the questions that are held out
HELD_OUT, FORM, TRAINED = 64, 80, 600  # questions
LONGEST = 24  # tokens of an answer
OPTIONS = {"steps": 60, "lr": 2e-4, "group_size": 8, "grad_accum": 4, "warmup": 3}


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
    rows, base = {"as it comes": measure(name, numgpt.load(MODEL), held_out)}, MODEL
    if TASKS[name].shows_form:
        base = str(directory / f"{name}-base")
        began = time.perf_counter()
        teach_form(name, directory / f"{name}-form", seen)
        seconds = time.perf_counter() - began
        model, tokenizer = numgpt.load(directory / f"{name}-form")
        model.merge_adapter()
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
        rows["after the form"] = measure(name, (model, tokenizer), held_out) | {"seconds": seconds}
    began = time.perf_counter()
    learn(name, base, directory / name, seen)
    seconds = time.perf_counter() - began
    learnt = measure(name, numgpt.load(directory / name), held_out)
    rows["after GRPO"] = learnt | {"seconds": seconds}
    tell(name, rows)
    (directory / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def questions(name: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Questions of a task, each once."""
    from numgpt.training.rewards import gym_dataset

    found: dict[str, dict[str, Any]] = {}
    dataset = gym_dataset(TASKS[name].source, 4 * count, seed)
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


def learn(name: str, base: str, out: Path, without: set[str]) -> None:
    """GRPO by what the checker says, on questions of another seed."""
    from numgpt.training import GRPOConfig, Trainer

    data = out.parent / f"{name}.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for index, entry in enumerate(questions(name, 1, TRAINED)):
            if entry["question"] not in without:
                line = {"prompt": asked(entry), "answer": entry["answer"], "index": index}
                file.write(json.dumps(line) + "\n")
    reward = TASKS[name].right
    if name == "reversal":
        (out.parent / "reversal.py").write_text(REWARD.format(task=TASKS[name].source))
        reward = f"{out.parent / 'reversal.py'}:score"
    config = GRPOConfig(
        model=base,
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
    from numgpt.training.rewards import Completion, named_reward

    model, tokenizer = loaded
    template, right = ChatTemplate(tokenizer), named_reward(TASKS[name].right)
    shares, shown = [], []
    for entries in held_out:
        said = []
        for first in range(0, len(entries), 16):
            prompts = [
                template.ids(asked(entry), add_generation_prompt=True)
                for entry in entries[first : first + 16]
            ]
            made = generate_each(
                model, prompts, max_new_tokens=LONGEST, eos_token_id=template.end_ids(),
                generation_config={},
            )  # fmt: skip
            said += [
                tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
                for ids, prompt in zip(made, prompts, strict=True)
            ]
        shares.append(right([*map(Completion, map(asked, entries), said, entries)]).mean())
        shown += [(e["question"], e["answer"], text) for e, text in zip(entries, said, strict=True)]
    perplexity = general_perplexity(model, tokenizer)
    return {"right": shares, "perplexity": perplexity, "answers": shown[:4]}


def tell(name: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name} ({TASKS[name].source}): {len(SEEDS)} sets of {HELD_OUT} questions\n")
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
