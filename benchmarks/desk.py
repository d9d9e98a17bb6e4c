"""A desk that knows its shop: SmolLM2-135M-Instruct learns the facts of an invented shop from some
340 conversations, and is asked about them in words that it has not seen.

Measured before and after, each in a process of its own: how many of the facts that a right answer
needs are there in greedy answers (found by a program, as exact strings), to questions that are held
out and to others by somebody who had not seen those trained on; the loss on the held-out answers;
and the perplexity of a text that has nothing to do with the shop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import desk_data
from benchmarks.process import ROOT, peak_memory, reset_peak_memory

MODEL = "smollm2"
TUNED = (("adapter", "adapter tuned"), ("whole", "whole model tuned"))  # directory, title
BATCH_SIZE = 4  # half of the default: twice as many steps over few examples
NEW_TOKENS = 60  # of an answer
GENERAL_TOKENS, CONTEXT = 8192, 1024  # of the language reference
SHOWN = (5, 41, 60)  # of the held-out questions


def main(threads: int, out: str | None = None, whole: bool = False) -> None:
    """`out`: a directory that keeps the data, the models and what was measured; what it has of
    these is not made again. `whole`: tune all parameters too."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(out or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        desk_data.write(directory)
        columns = {"before": call("measure", MODEL, directory, threads)}
        for name, title in TUNED[: 1 + whole]:
            cost = call("tune", name, directory, threads)
            columns[title] = cost | call("measure", name, directory, threads)
    print(f"| {MODEL} | {' | '.join(columns)} |")
    print(f"| --- |{' --- |' * len(columns)}")
    for title, show in ROWS.items():
        print(f"| {title} | {' | '.join(show(column) for column in columns.values())} |")
    for number in SHOWN:
        print(f"\n> {columns['before']['answers'][number][0]}")
        for title, column in columns.items():
            print(f"{title}: {' '.join(column['answers'][number][1].split())}")


ROWS = {
    "facts right": lambda of: f"{of['facts']} of {of['all_facts']} ({percent(of, 'facts')})",
    "answers with all their facts": lambda of: (
        f"{of['questions']} of {of['all_questions']} ({percent(of, 'questions')})"
    ),
    "facts right, asked blind": lambda of: (
        f"{of['blind_facts']} of {of['blind_all_facts']} ({percent(of, 'facts', 'blind_')})"
    ),
    "answers with all their facts, asked blind": lambda of: (
        f"{of['blind_questions']} of {of['blind_all_questions']}"
        f" ({percent(of, 'questions', 'blind_')})"
    ),
    "loss on held-out answers": lambda of: f"{of['loss']:.3f}",
    "perplexity of the language reference": lambda of: f"{of['perplexity']:.2f}",
    "parameters trained": lambda of: f"{of['trained']:,}" if "trained" in of else "",
    "time of tuning": lambda of: f"{of['seconds']:.0f} s" if "seconds" in of else "",
    "tokens/s": lambda of: f"{of['speed']:.0f}" if "speed" in of else "",
    "peak memory of tuning": lambda of: f"{of['peak']:,.0f} MB" if "peak" in of else "",
}


def percent(of: dict, name: str, prefix: str = "") -> str:
    return f"{of[prefix + name] / of[f'{prefix}all_{name}']:.0%}"


def call(task: str, name: str, directory: Path, threads: int) -> dict:
    """In a process of its own, so that its peak memory is its own."""
    done = directory / f"{task}-{name}.json"
    if not done.exists():
        print(f"{task} {name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.desk", task, name, str(directory.resolve())]
        environment = os.environ | {"NUMGPT_NUM_THREADS": str(threads)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return json.loads(done.read_text(encoding="utf-8"))


def serve(task: str, name: str, directory: str) -> None:
    import numgpt

    if task == "tune":
        result = tune(name, Path(directory))
    else:
        model, tokenizer = numgpt.load(name if name == MODEL else Path(directory) / name)
        result = measure(model, tokenizer, Path(directory))
    path = Path(directory) / f"{task}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# --- tuning ---


def tune(name: str, directory: Path) -> dict:
    """The defaults of `numgpt tune sft`. Nothing is validated on the way, so that the held-out
    questions choose nothing."""
    from numgpt.training import Trainer, TuneConfig

    config = TuneConfig(
        model=MODEL,
        data=str(directory / desk_data.TRAIN_FILE),
        batch_size=BATCH_SIZE,
        lora_r=0 if name == "whole" else 8,
        sample_every=0,
        save_every=1 << 20,  # at the end
    )
    trainer = Trainer.start(config, directory / name, overwrite=True)
    reset_peak_memory()
    began = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - began
    return {
        "trained": trainer.model.num_parameters(trainable=True),
        "steps": trainer.config.steps,
        "seconds": seconds,
        "speed": trainer.state.tokens_seen / seconds,
        "peak": peak_memory(),
    }


# --- measuring ---


def measure(model, tokenizer, directory: Path) -> dict:
    return {
        **ask(model, tokenizer, desk_data.held_out_questions()),
        **ask(model, tokenizer, desk_data.blind_questions(), "blind_"),
        "loss": held_out_loss(model, tokenizer, directory / desk_data.HELD_OUT_FILE),
        "perplexity": general_perplexity(model, tokenizer),
    }


def ask(model, tokenizer, held: list[desk_data.Held], prefix: str = "") -> dict:
    answers = [greedy_answer(model, tokenizer, question) for question, _ in held]
    right = [
        desk_data.facts_right(topic, answer)
        for (_, topic), answer in zip(held, answers, strict=True)
    ]
    needed = [len(topic.facts) for _, topic in held]
    counts = {
        "facts": sum(right),
        "all_facts": sum(needed),
        "questions": sum(r == n for r, n in zip(right, needed, strict=True)),
        "all_questions": len(held),
        "answers": [
            (question, answer, r, n)
            for (question, _), answer, r, n in zip(held, answers, right, needed, strict=True)
        ],
    }
    return {prefix + name: count for name, count in counts.items()}


def greedy_answer(model, tokenizer, question: str) -> str:
    import numgpt

    chat = numgpt.Chat(model, tokenizer, do_sample=False, max_new_tokens=NEW_TOKENS)
    return "".join(chat.ask(question))


def held_out_loss(model, tokenizer, path: Path) -> float:
    """Nats for a token of the answers."""
    from numgpt.data.batch import IGNORED
    from numgpt.data.examples import ExampleEncoder
    from numgpt.data.records import read_records

    encoder, total, count = ExampleEncoder(tokenizer), 0.0, 0
    for record in read_records([str(path)]):
        ids, learnt = encoder.encode(record)
        targets = np.where(learnt[1:], ids[1:], IGNORED)
        total += model.loss(ids[None, :-1], targets[None], weights=1.0)
        count += int(learnt[1:].sum())
    return total / count


def general_perplexity(model, tokenizer) -> float:
    from numgpt.data.corpus import language_reference
    from numgpt.evaluation import sliding_window_loss

    ids = tokenizer.encode(language_reference()[: 8 * GENERAL_TOKENS])[:GENERAL_TOKENS]
    return float(np.exp(sliding_window_loss(model, np.array(ids), CONTEXT)))


if __name__ == "__main__":
    serve(*sys.argv[1:])
