"""Tables in a notebook: what Jupyter shows of a result."""

from __future__ import annotations

import html
from collections.abc import Sequence

from numgpt.messages import printable
from numgpt.tokenizer import BaseTokenizer

Cell = str | tuple[str, float]  # a text, or one with a share of the shade's strength
SURE, SURPRISING = "31, 95, 168", "230, 120, 10"  # the shades of cells, as on the page


def piece(tokenizer: BaseTokenizer | None, id: int) -> str:
    """A token's text, bytes that are no text by themselves as <0x…>; without a tokenizer [id]."""
    if tokenizer is None:
        return f"[{id}]"
    try:
        raw = tokenizer.token_to_bytes(id)
    except (ValueError, IndexError):
        return f"[{id}]"  # a vocabulary that is padded to a round size
    try:
        return printable(raw.decode())
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)


def visible(text: str) -> str:
    """A token's text with its spaces and line breaks to be seen."""
    for character, sign in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥")):
        text = text.replace(character, sign)
    return text or "∅"


def percent(p: float) -> str:
    """As the page writes it."""
    return f"{p:.1%}" if p >= 1e-3 or p == 0 else "<0.1%"


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], shade: str = SURE
) -> str:
    """An HTML table."""
    parts = [f"<table><caption>{html.escape(caption)}</caption><thead><tr>"]
    parts += [f"<th>{html.escape(head)}</th>" for head in heads]
    parts.append("</tr></thead><tbody>")
    for row in rows:
        parts.append("<tr>")
        for cell in row:
            text, share = cell if isinstance(cell, tuple) else (cell, 0.0)
            style = f' style="background: rgba({shade}, {0.6 * share:.2f})"' if share else ""
            parts.append(f"<td{style}>{html.escape(text)}</td>")
        parts.append("</tr>")
    return "".join([*parts, "</tbody></table>"])
