"""One page that explains what a model does with a text, forwards and backwards."""

from __future__ import annotations

import html
import os
import re
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from numgpt.files import replacing
from numgpt.insight.contents import GENERATOR, Progress, View, contents
from numgpt.insight.notebook import piece, visible
from numgpt.insight.payload import encode
from numgpt.insight.trace import Trace, chosen_layers, trace
from numgpt.messages import shown
from numgpt.models.language_model import LanguageModel
from numgpt.options import OptionError
from numgpt.tokenizer import BaseTokenizer

MOST_TOKENS = 64
BEGINNING = f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{GENERATOR}">'''  # by which a page is known
SCRIPTS = ("decode.js", "sampling.js", "widgets.js", "follow.js", "views.js", "page.js")


class Page:
    """An explanation: `html`, a whole page. Jupyter shows it."""

    def __init__(self, of: Trace, view: View, progress: Progress = lambda what: None):
        self.trace = of
        self.notes = view.notes  # what was chosen for whoever asked
        self.data = contents(of, view, progress)
        progress("writing")
        self.html = _html(self.data)

    def save(self, path: str | os.PathLike) -> None:
        """Write the page; it takes the place of an older page, not of another file."""
        require_place(path)
        with replacing(path) as file:
            file.write(self.html.encode())

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="{GENERATOR}"'
            ' style="width: 100%; height: 800px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<Page: {len(self.trace.ids)} tokens, {len(self.html) / 1e6:.1f} MB: save(path)>"


def page(
    model: LanguageModel,
    tokenizer: BaseTokenizer,
    text: str,
    token: int | None = None,
    target: str | None = None,
    layers: tuple[int | None, int | None] | None = None,
    progress: Progress = lambda what: None,
) -> Page:
    """The page on a text: every step of the pass with its equation, the numbers in it and the code
    that computes it, forwards and backwards; attention, the lens, attribution, loss, sampling.

    token is the position that it opens at, the last by default; target what may come there, a
    text, of which the first token counts: by default what does come, or the likeliest. Layers A up
    to B of layers=(A, B) are kept, by default all. Of a long text the first 64 tokens are taken.
    progress is told what is computed, as it goes on.

    Raises ValueError for a text without tokens, a position outside it, layers that there are not,
    a model whose numbers are not finite, and where it would take more memory than there is.
    """
    of_layers = chosen_layers(model, layers)
    ids = tokenizer.encode(text, add_special_tokens=True)
    if not ids:
        raise ValueError(f"the text is {shown(text)}: there is no token to explain")
    notes, after, assumed = [], None, False
    most = min(MOST_TOKENS, model.context_length)
    if len(ids) > most:
        notes.append(f"The text has {len(ids)} tokens: the first {most} are explained.")
        ids, after = ids[:most], ids[most]
    checked = model.check_ids(ids)[0]
    last = len(checked) - 1
    if token is None:
        token = last
    if not hasattr(token, "__index__") or not -len(checked) <= token <= last:
        which = "text has" if after is None else f"first {most} of the text are"
        raise OptionError("{token}: the {0} tokens 0 to {1}", which, last, token=token)
    position = int(token) % len(checked)
    asked = None if target is None else _first_token(tokenizer, target, model, notes)
    if asked is not None and position == last:
        after = asked
    elif asked is not None:
        notes.append(
            f"“{visible(piece(tokenizer, asked))}” after token {position} is looked at in"
            " Attribution: the loss is that of the text as it is."
        )
    if after is None:
        after, assumed = int(model(checked[None])[0, -1].argmax()), True
        notes.append(
            f"The text ends at token {last}: as the next one “{visible(piece(tokenizer, after))}”,"
            " the likeliest, is assumed. A target names another."
        )
    if len(of_layers) < len(model.blocks):
        which = f"Layers {of_layers[0]} to {of_layers[-1]} are"
        which = which if len(of_layers) > 1 else f"Layer {of_layers[0]} is"
        notes.append(
            f"{which} kept, of {len(model.blocks)}: steps and attention of the others are not in"
            " the page."
        )
    progress("the pass, forwards and backwards")
    of = trace(model, checked, after, of_layers)
    target_id = int(of.targets[position]) if asked is None else asked
    return Page(of, View(tokenizer, position, target_id, notes, assumed), progress)


def _first_token(
    tokenizer: BaseTokenizer, target: str, model: LanguageModel, notes: list[str]
) -> int:
    special = tokenizer.special_tokens.get(target)
    ids = tokenizer.encode(target) if special is None else [special]
    if not ids:
        raise OptionError("{target}: expected a text with a token in it", target=target)
    if len(ids) > 1:
        pieces = " + ".join(repr(piece(tokenizer, id)) for id in ids[:8])
        notes.append(
            f"The target {shown(target)} is {len(ids)} tokens, {pieces}"
            f"{' …' if len(ids) > 8 else ''}: the first is taken."
        )
    if ids[0] >= model.config.vocab_size:
        outside = "{target}: its token {0} is outside the model's vocabulary of {1}"
        raise OptionError(outside, ids[0], model.config.vocab_size, target=target)
    return ids[0]


def require_place(path: str | os.PathLike) -> None:
    """Raises FileExistsError for a file that is no page of this kind, another OSError where none
    can be written."""
    place = Path(path)
    if str(path) == "-":
        raise FileNotFoundError('"-" is no name for a page: name a file')
    if not (place.parent.is_dir() and os.access(place.parent, os.W_OK)):
        raise FileNotFoundError(
            f"{place}: there is no directory {place.parent} that can be written: choose another"
        )
    if place.exists() and not place.is_file() and not place.is_dir():
        raise FileExistsError(f"{place} is a device or a pipe: name a file")
    if place.exists() and place.stat().st_size:
        with open(place, "rb") as file:
            if file.read(len(BEGINNING)) != BEGINNING.encode():
                raise FileExistsError(
                    f"{place} is there already, and is no page of numgpt: choose another name"
                )


def _html(data: dict[str, Any]) -> str:
    assets = resources("numgpt.insight") / "assets"

    def asset(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    parts = {
        "beginning": BEGINNING,
        "title": html.escape(f"{data['model'].partition(':')[0]}: {data['text'][:60]}"),
        "style": asset("page.css"),
        "script": "\n".join(asset(name) for name in SCRIPTS),
        "data": encode(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))
