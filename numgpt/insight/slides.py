"""A page's pictures, one file each, for slides: what the page shows, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from numgpt.files import replacing
from numgpt.insight import notebook
from numgpt.insight.contents import GENERATOR
from numgpt.layers import softmax_forward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, DPI = (16.0, 9.0), 100  # inches, pixels an inch
ABOVE, BELOW, FAINT = "#1f5fa8", "#b35806", "#59636e"
MOST_BARS = 20
LABELLED = 40  # tokens, of which a picture has room for the names


def require_matplotlib() -> None:
    """Raises ValueError where there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('pictures need matplotlib: pip install "numgpt[plot]"')


def save_pictures(data: dict[str, Any], directory: str | os.PathLike) -> list[Path]:
    """Draw what a page carries; returns the files: loss.png, attention.png, head.png, lens.png,
    attribution.png, prediction.png."""
    require_matplotlib()
    require_directory(directory)
    from matplotlib.figure import Figure

    Path(directory).mkdir(parents=True, exist_ok=True)
    paths = [Path(directory) / name for name in NAMES]
    for path, draw in zip(paths, PICTURES, strict=True):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        draw(figure, data)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": GENERATOR})
        with replacing(path) as file:
            file.write(drawn.getvalue())
    return paths


def require_directory(directory: str | os.PathLike) -> None:
    """Raises an OSError where the pictures can't be written, or would replace other files."""
    if not os.fspath(directory):
        raise FileNotFoundError('"" is no directory: name one')
    place = Path(directory)
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{place} is a file: name a directory for the pictures")
    for path in (place / name for name in NAMES):
        if path.is_file() and GENERATOR.encode() not in path.read_bytes():
            raise FileExistsError(
                f"{path} is there already, and is no picture of numgpt: choose another directory"
            )


def pieces(data: dict[str, Any]) -> list[str]:
    """The text's tokens as they can be seen."""
    return [visible(data["vocabulary"][id]) for id in data["ids"]]


def visible(piece: str) -> str:
    """… without a $, which would begin a formula."""
    return notebook.visible(piece).replace("$", "\\$")


def _loss(figure: Figure, data: dict[str, Any]) -> None:
    axes, losses = figure.subplots(), data["report"]["loss"]
    came = [visible(data["vocabulary"][id]) for id in data["targets"]]
    axes.bar(range(len(losses)), losses, color=ABOVE)
    axes.set_xticks(range(len(losses)), came, rotation=60, ha="right", family="monospace")
    axes.set_ylabel("−log p, nats")
    axes.set_title(f"How surprising each token was: {data['loss']:.3f} nats on average", loc="left")


def _attention(figure: Figure, data: dict[str, Any]) -> None:
    layers, heads = data["layers"], data["sizes"]["H"]
    grid = figure.subplots(len(layers), heads, squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for head, axes in enumerate(row):
            if layer == layers[0]:
                axes.set_title(str(head))
            _matrix(axes, data["patterns"][layer]["p"][:, head])
            axes.set_xticks([], [])
            axes.set_yticks([], [])
        row[0].set_ylabel(f"{layer}", rotation=0, ha="right", va="center")
    figure.suptitle("Where each head looks: layers from above, heads from left; rows are queries")


def _head(figure: Figure, data: dict[str, Any]) -> None:
    """The head that looks hardest at one token other than the first, after the chosen token."""
    query, axes = data["token"], figure.subplots()
    strongest = {
        (layer, head): pattern["p"][query, head, 1 if query else 0 :].max()
        for layer, pattern in data["patterns"].items()
        for head in range(data["sizes"]["H"])
    }
    layer, head = max(strongest, key=lambda place: strongest[place])
    image = _matrix(axes, data["patterns"][layer]["p"][:, head])
    names = pieces(data)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", family="monospace")
    axes.set_yticks(range(len(names)), names, family="monospace")
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(f"Layer {layer}, head {head}", loc="left")
    figure.colorbar(image, label="probability")


def _matrix(axes: Axes, p: np.ndarray) -> Any:
    from matplotlib.colors import PowerNorm

    return axes.imshow(p, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")


def _lens(figure: Figure, data: dict[str, Any]) -> None:
    axes, lens = figure.subplots(), data["lens"]
    probabilities = lens["probabilities"][..., 0]
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1.6, aspect="auto", origin="lower")
    size = min(14, 240 / len(data["ids"]))
    for layer, row in enumerate(lens["top"][..., 0] if len(data["ids"]) <= LABELLED else ()):
        for t, id in enumerate(row):
            text = visible(data["vocabulary"][id])[:9]
            axes.text(t, layer, text, ha="center", va="center", family="monospace", fontsize=size)
    names = pieces(data)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", family="monospace")
    axes.set_yticks(range(len(lens["names"])), lens["names"])
    axes.set_title("The likeliest next token after each block", loc="left")


def _attribution(figure: Figure, data: dict[str, Any]) -> None:
    found, t = data["attribution"], data["token"]
    parts = zip(found["parts"], found["values"][t].tolist(), strict=True)
    ranked = sorted(parts, key=lambda part: -abs(part[1]))
    shown, rest = ranked[:MOST_BARS], ranked[MOST_BARS:]
    if rest:
        shown.append((f"the {len(rest)} others", sum(value for _, value in rest)))
    token = visible(data["vocabulary"][found["tokens"][t]])
    _bars(figure, shown, f"Where the logit of “{token}” comes from: {found['logits'][t]:.3f}")


def _prediction(figure: Figure, data: dict[str, Any]) -> None:
    p, _ = softmax_forward(data["logits"][data["token"]])
    top = np.argsort(-p, kind="stable")[:MOST_BARS]
    shown = [(visible(data["vocabulary"][id]), float(p[id])) for id in top]
    _bars(figure, shown, f"What may come after “{pieces(data)[data['token']]}”")


def _bars(figure: Figure, rows: list[tuple[str, float]], title: str) -> None:
    axes, values = figure.subplots(), [value for _, value in rows]
    bars = axes.barh(range(len(rows)), values, color=[ABOVE if v >= 0 else BELOW for v in values])
    axes.bar_label(bars, [f" {value:.3g} " for value in values])
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], family="monospace")
    axes.invert_yaxis()
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.margins(x=0.08)
    axes.set_title(title, loc="left")


PICTURES = (_loss, _attention, _head, _lens, _attribution, _prediction)
NAMES = [f"{draw.__name__.removeprefix('_')}.png" for draw in PICTURES]
