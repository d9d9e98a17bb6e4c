"""growth.json as a plot (growth.svg) and as tables with the straight lines fitted to them."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.growth import RESULTS

LABELS = {"step": "tokens in a training step", "decode": "context of a decoded token"}
OTHERS = {"step": "PyTorch", "decode": "transformers"}


def main(threads: int) -> None:
    results = json.loads(RESULTS.read_text())
    for study, sides in results.items():
        ours, theirs = (np.array(sides[side]) for side in ("numgpt", "other"))
        unit, scale = ("s", 1) if study == "step" else ("ms", 1e3)
        other = OTHERS[study]
        print(
            f"\n| {LABELS[study]} | numgpt, {unit} | {other}, {unit} | ratio"
            f" | numgpt, MB | {other}, MB |\n| --- | --- | --- | --- | --- | --- |"
        )
        for (x, seconds, memory), (_, their_seconds, their_memory) in zip(
            ours, theirs, strict=True
        ):
            print(
                f"| {x:.0f} | {seconds * scale:.2f} | {their_seconds * scale:.2f}"
                f" | {their_seconds / seconds:.2f} | {memory:,.0f} | {their_memory:,.0f} |"
            )
        print("\n" + fit("time of numgpt", ours[:, 0], ours[:, 1] * scale, unit))
        print(fit("memory of numgpt", ours[:, 0], ours[:, 2], "MB"))
    draw(results)


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, start and R² of the straight line through the points, by least squares."""
    slope, start = np.polyfit(x, y, 1)
    return slope, start, 1 - np.sum((y - slope * x - start) ** 2) / np.sum((y - y.mean()) ** 2)


def fit(what: str, x: np.ndarray, y: np.ndarray, unit: str) -> str:
    slope, start, r_squared = line(x, y)
    return f"- {what}: {start:.4g} {unit} + {slope:.3g} {unit} each, R² = {r_squared:.4f}"


def draw(results: dict) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "numgpt"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for row, (study, sides) in zip(axes, results.items(), strict=True):
        for column, (ax, label) in enumerate(zip(row, ("seconds", "MB"), strict=True), start=1):
            for side, name in (("numgpt", "numgpt"), ("other", OTHERS[study])):
                points = np.array(sides[side])
                drawn = ax.plot(points[:, 0], points[:, column], "o", label=name)
                slope, start, _ = line(points[:, 0], points[:, column])
                ends = points[[0, -1], 0]
                ax.plot(ends, start + slope * ends, "-", color=drawn[0].get_color(), alpha=0.4)
            ax.set(xlabel=LABELS[study], ylabel=label, ylim=(0, None))
            ax.legend()
    figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})
