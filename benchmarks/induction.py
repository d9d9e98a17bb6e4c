"""Induction heads, as they develop: a model of two layers learns to go on with what repeats.

A random sequence of 8 to 32 tokens is repeated until the context is full. From its second time on,
each token can be known: it is what followed the present one last time. A head that looks there has
to know which token came before each place, which heads of the layer below can tell it (Olsson et
al. 2022, arXiv:2209.11895). The detectors of numgpt.insight follow both kinds of heads through the
training; then they are taken out, and the copying with them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import numgpt
from numgpt import insight

VOCABULARY, CONTEXT, SHORTEST = 64, 64, 8
STEPS, BATCH, LR, WARMUP = 1400, 32, 2e-3, 100
REPORT_EVERY = 100
FOUND = 0.5  # of its attention, from which a head counts as one of a kind
FIGURE = Path(__file__).with_name("induction.svg")


def repeating(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and targets (count, CONTEXT); what can't be known has the target -100."""
    ids = np.empty((count, CONTEXT + 1), np.int64)
    targets = np.full((count, CONTEXT), -100)
    for row, wanted in zip(ids, targets, strict=True):
        period = int(rng.integers(SHORTEST, CONTEXT // 2 + 1))
        row[:] = np.resize(rng.integers(VOCABULARY, size=period), CONTEXT + 1)
        wanted[period:] = row[period + 1 :]
    return ids[:, :-1], targets


def trained(steps: int = STEPS, report=lambda step, loss, scores: None) -> numgpt.GPT:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 128, "n_positions": CONTEXT}
    model = numgpt.GPT(numgpt.GPTConfig(**sizes, vocab_size=VOCABULARY), seed=0)
    optimizer = numgpt.AdamW(model, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        optimizer.lr = LR * min(1, step / WARMUP)
        loss, _ = model.loss_and_grads(*repeating(rng, BATCH))
        optimizer.step(grad_clip=1.0)
        if step % REPORT_EVERY == 0 or step == 1:
            report(step, loss, insight.attention_head_scores(model))
    return model


def copied(model: numgpt.GPT, heads: list[tuple[int, int]]) -> float:
    """The fraction of repeated tokens that the model predicts without these heads, each of which
    gives its mean in place of what it would."""
    ids, targets = repeating(np.random.default_rng(1), 64)
    logits = model.run_with_hooks(ids, insight.ablation_hooks(model, heads=heads, means=ids))
    counted = targets != -100
    return float((logits.argmax(axis=-1) == targets)[counted].mean())


def of_kind(scores: np.ndarray) -> list[tuple[int, int]]:
    """The heads, (layer, head), that look at most on such places."""
    return [(int(layer), int(head)) for layer, head in np.argwhere(scores > FOUND)]


def main(threads: int) -> None:
    numgpt.set_num_threads(threads)
    history: list[tuple[int, float, insight.HeadScores]] = []
    began = time.perf_counter()
    print(
        "| step | loss | previous token, best head of layer 0, 1 | induction, best of layer 0, 1 |"
    )
    print("| --- | --- | --- | --- |")

    def report(step: int, loss: float, scores: insight.HeadScores) -> None:
        history.append((step, loss, scores))
        best = (
            f"{a:.2f}, {b:.2f}" for a, b in (scores.previous_token.max(1), scores.induction.max(1))
        )
        print(f"| {step} | {loss:.3f} | {' | '.join(best)} |", flush=True)

    model = trained(report=report)
    seconds, scores = time.perf_counter() - began, history[-1][2]
    induction, previous = of_kind(scores.induction), of_kind(scores.previous_token)
    others = [
        (layer, head)
        for layer in range(2)
        for head in range(4)
        if (layer, head) not in (*induction, *previous)
    ]
    print(f"\n{seconds:.0f} s on {threads} threads; ablated, of repeated tokens right:\n")
    print("| without | heads (layer, head) | right |\n| --- | --- | --- |")
    for title, heads in (
        ("nothing", []),
        ("the induction heads", induction),
        ("the previous-token heads", previous),
        ("all others", others),
    ):
        print(f"| {title} | {', '.join(map(str, heads)) or '-'} | {copied(model, heads):.1%} |")
    draw(model, history, induction, previous)


def draw(model: numgpt.GPT, history: list, induction: list, previous: list) -> None:
    try:
        import matplotlib
    except ImportError:
        return print("no figure: it needs  pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [step for step, _, _ in history]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    axes[0].plot(steps, [loss for _, loss, _ in history], color="black", label="loss, nats")
    axes[0].plot(steps, [s.previous_token.max() for *_, s in history], "--", label="previous token")
    axes[0].plot(steps, [s.induction.max() for *_, s in history], label="induction")
    axes[0].set(xlabel="step", title="Best head of each kind")
    axes[0].legend()
    ids = np.resize(np.random.default_rng(2).choice(VOCABULARY, 12, replace=False), 24)
    patterns = model.attentions(ids)
    for axis, title, heads in (
        (axes[1], "previous token", previous),
        (axes[2], "induction", induction),
    ):
        if heads:
            layer, head = heads[0]
            axis.imshow(patterns[layer][0, head], cmap="cividis", vmin=0, vmax=1)
            axis.set(title=f"{title}: layer {layer}, head {head}", xlabel="key", ylabel="query")
    figure.savefig(FIGURE, metadata={"Date": None})
    print(f"\n{FIGURE.name} is written")
