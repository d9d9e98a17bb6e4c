"""Rewards alone: SmolLM2-135M-Instruct by GRPO with LoRA on two tasks of reasoning-gym: sums and
differences of two numbers of up to two digits, and all four operations on numbers of one digit.

A reward that is never given teaches nothing. As the checker wants the answer and nothing else, and
the model says whole sentences, its reward would be 0 almost always; so the reward here is that the
last number said is the answer, which the model as it comes gets now and then. No form has to be
shown first.

Measured before and after, greedily, on three sets of questions of which the run has seen none; and
what was lost: the perplexity of a text that has nothing to do with it.
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
    "calculations": "reasoning_gym:basic_arithmetic,min_terms=2,max_terms=2,max_digits=1,"
    "allow_parentheses=false,allow_negation=false",
}
REWARD = "number"
# Of the questions that are held out. Question n of a seed is the first of seed + n: so far apart.
SEEDS = (1_000_000, 2_000_000, 3_000_000)
HELD_OUT, TRAINED = 30, 600  # questions
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
        draw({name: directory / name / "log.jsonl" for name in TASKS}, directory / "grpo.svg")


def study(name: str, directory: Path) -> None:
    import numgpt

    held_out, seen = [], set()
    for seed in SEEDS:
        held_out.append(questions(name, seed, HELD_OUT, seen))
        seen |= {entry["question"] for entry in held_out[-1]}
    rows = {"as it comes": measure(numgpt.load(MODEL), held_out)}
    began = time.perf_counter()
    learn(name, directory / name, seen)
    seconds = time.perf_counter() - began
    rows["after GRPO"] = measure(numgpt.load(directory / name), held_out) | {"seconds": seconds}
    tell(name, rows)
    (directory / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def questions(name: str, seed: int, count: int, without: set[str]) -> list[dict[str, Any]]:
    """Questions of a task, each once."""
    from numgpt.training.rewards import gym_dataset

    found: dict[str, dict[str, Any]] = {}
    dataset = gym_dataset(TASKS[name], 4 * count, seed)
    for index in range(4 * count):
        entry = dataset[index]
        if entry["question"] not in without:
            found.setdefault(entry["question"], entry)
    return list(found.values())[:count]


def asked(entry: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": entry["question"]}]


def learn(name: str, out: Path, without: set[str]) -> None:
    """GRPO on other questions."""
    from numgpt.training import GRPOConfig, Trainer

    data = out.parent / f"{name}.jsonl"
    with open(data, "w", encoding="utf-8") as file:
        for entry in questions(name, 1, TRAINED, without):
            line = {"prompt": asked(entry), "answer": entry["answer"]}
            file.write(json.dumps(line) + "\n")
    config = GRPOConfig(
        model=MODEL,
        data=str(data),
        reward=REWARD,
        max_completion_length=LONGEST,
        log_every=2,
        save_every=20,
        sample_every=20,
        **OPTIONS,
    )
    Trainer.start(config, out, overwrite=True).run(report=told)


def measure(loaded: tuple, held_out: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Right answers of each set, the mean reward, and the perplexity of a general text."""
    from benchmarks.desk import general_perplexity
    from numgpt.generation import generate_each
    from numgpt.tokenizer.chat_template import ChatTemplate
    from numgpt.training.rewards import Completion, named_reward

    model, tokenizer = loaded
    template, right = ChatTemplate(tokenizer), named_reward(REWARD)
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
    return {"right": [*map(float, shares)], "perplexity": perplexity, "answers": shown[:4]}


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


def draw(logs: dict[str, Path], path: Path, smoothed: int = 5) -> None:
    """The mean reward of what was sampled, over the steps: of each report, and of some together."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "numgpt"  # the same file from the same numbers
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2))
    for number, (name, log) in enumerate(logs.items()):
        reports = [json.loads(line) for line in log.read_text().splitlines()]
        steps, rewards = zip(*((r["step"], r["reward"]) for r in reports), strict=True)
        axes.plot(steps, rewards, ".", color=f"C{number}", alpha=0.4)
        means = [
            statistics.mean(rewards[max(0, n - smoothed + 1) : n + 1]) for n in range(len(steps))
        ]
        axes.plot(steps, means, color=f"C{number}", label=name)
    axes.set(xlabel="step", ylabel="share of right completions")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def told(record: object) -> None:
    print(record, file=sys.stderr, flush=True)
