"""Mermaid diagrams as SVG, drawn while the site is built: a page needs no script, and follows the reader's theme.

A ``mermaid`` block stays text on GitHub, which draws it too. Two kinds are known, in the forms that these pages use:
`stateDiagram-v2` and `sequenceDiagram`. Anything else in one is a warning, and so fails the build.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from typing import Any

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)

CHAR_W = 7.3  # of the monospaced 12 px that `site.css` sets
LINE_H = 16


class UnknownLineError(ValueError):
    """A line that this module can't draw."""


def _text(x: float, y: float, lines: list[str], kind: str = "", anchor: str = "middle") -> str:
    rows = "".join(f'<tspan x="{x:g}" y="{y + LINE_H * row:g}">{escape(line)}</tspan>' for row, line in enumerate(lines))
    return f'<text class="{kind}" text-anchor="{anchor}">{rows}</text>'


def _svg(width: float, height: float, title: str, parts: list[str]) -> str:
    head = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0 0L10 5L0 10z"/></marker></defs>'
    )
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    body = "\n".join(parts)
    return (
        f'<div class="diagram" tabindex="0"><svg {size} role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">\n'
        f"{head}{body}</svg></div>"
    )


# States of a row

BOX_W, BOX_H = 110, 40
LABEL_CHARS = 22
#: Where the middle of each state is. A diagram with another state can't be drawn.
PLACES = {
    "[*]": (200, 24),
    "open": (200, 140),
    "failed": (200, 400),
    "settled": (570, 140),
    "dead": (570, 400),
    "retired": (860, 140),
}
#: How far along its arrow a label stands: near the end where two arrows cross.
ALONG = {("open", "dead"): 0.78, ("failed", "settled"): 0.7}


def _border(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from the middle of one box to that of another leaves the first."""
    x, y = end[0] - start[0], end[1] - start[1]
    scale = min((BOX_W / 2 + 3) / abs(x) if x else 1, (BOX_H / 2 + 3) / abs(y) if y else 1)
    return start[0] + x * scale, start[1] + y * scale


def state_diagram(lines: list[str]) -> str:
    """Draw the states at their `PLACES`, and an arrow for each step. Raises: UnknownLineError."""
    steps = {}
    for line in lines:
        found = re.fullmatch(r"(\S+) --> (\S+): (.*)", line)
        if found is None or found[1] not in PLACES or found[2] not in PLACES:
            raise UnknownLineError(line)
        steps[found[1], found[2]] = found[3]
    arrows, labels = [], []
    for (old, new), label in steps.items():
        start, end = _border(PLACES[old], PLACES[new]), _border(PLACES[new], PLACES[old])
        wrapped = textwrap.wrap(label, LABEL_CHARS, break_long_words=False)
        x, y = (one + (two - one) * ALONG.get((old, new), 0.5) for one, two in zip(start, end, strict=True))
        upright, anchor = start[0] == end[0], "middle"
        if upright:
            # Of two arrows between the same states one is at the left, one at the right.
            aside = 0 if (new, old) not in steps else 24 if start[1] > end[1] else -24
            start, end = (start[0] + aside, start[1]), (end[0] + aside, end[1])
            anchor, x = ("end", x + aside - 8) if aside < 0 else ("start", x + aside + 8)
        elif start[1] == end[1]:
            y += -8 - LINE_H * (len(wrapped) - 1) if start[1] < PLACES["dead"][1] else 22
        else:
            y -= LINE_H * (len(wrapped) - 1) / 2
        arrows.append(f'<path class="step" d="M{start[0]:g} {start[1]:g}L{end[0]:g} {end[1]:g}" marker-end="url(#tip)"/>')
        labels.append(_text(x, y, wrapped, "label", anchor))
    for state, (x, y) in PLACES.items():
        if state == "[*]":
            arrows.append(f'<circle class="begin" cx="{x}" cy="{y + 10}" r="9"/>')
        else:
            arrows.append(f'<rect class="box" x="{x - BOX_W / 2}" y="{y - BOX_H / 2}" width="{BOX_W}" height="{BOX_H}" rx="8"/>')
            labels.append(_text(x, y + 4, [state], "name"))
    return _svg(930, 460, "the states of a payment and the steps between them", arrows + labels)


# Messages between parts

COLUMN_W, STEP_H, HEAD_H = 165, 42, 56


def sequence_diagram(lines: list[str]) -> str:
    """Draw who sends what to whom, from above to below. Raises: UnknownLineError."""
    names: dict[str, str] = {}
    parts: list[str] = []
    opened: list[float] = []
    y: float = HEAD_H + 30
    for line in lines:
        if found := re.fullmatch(r"participant (\w+) as (.+)", line):
            names[found[1]] = found[2]
            continue
        column = {name: COLUMN_W * number + COLUMN_W / 2 + 20 for number, name in enumerate(names)}
        width = COLUMN_W * len(names) + 40
        if found := re.fullmatch(r"(\w+)(--?>>)(\w+): (.+)", line):
            start, end = column[found[1]], column[found[3]]
            kind = "reply" if found[2] == "-->>" else "step"
            parts.append(f'<path class="{kind}" d="M{start} {y}H{end}" marker-end="url(#tip)"/>')
            parts.append(_text((start + end) / 2, y - 7, [found[4]], "label"))
            y += STEP_H
        elif found := re.fullmatch(r"Note over (\w+): (.+)", line):
            wide = len(found[2]) * CHAR_W + 24
            parts.append(f'<rect class="note" x="{column[found[1]] - wide / 2}" y="{y - 22}" width="{wide}" height="30" rx="4"/>')
            parts.append(_text(column[found[1]], y - 3, [found[2]], "label"))
            y += STEP_H + 4
        elif found := re.fullmatch(r"(alt|else) (.+)", line):
            if found[1] == "alt":
                opened.append(y - 26)
            else:
                parts.append(f'<path class="case" d="M6 {y - 26}H{width - 6}"/>')
            parts.append(_text(16, y - 8, [f"{'if' if found[1] == 'alt' else 'or'} {found[2]}"], "case-name", "start"))
            y += 34
        elif line == "end":
            begun = opened.pop()
            parts.append(f'<rect class="case" x="6" y="{begun}" width="{width - 12}" height="{y - 26 - begun}" rx="6"/>')
            y += 14
        else:
            raise UnknownLineError(line)
    heads = []
    for name, shown in names.items():
        x = column[name]
        heads.append(f'<path class="life" d="M{x} {HEAD_H}V{y - 10}"/>')
        heads.append(f'<rect class="box" x="{x - 76}" y="14" width="152" height="{HEAD_H - 14}" rx="6"/>')
        heads.append(_text(x, 32 if "." in shown else 40, shown.replace(".", "\n.", 1).split("\n"), "name"))
    return _svg(width, y, "which part sends what to which, in order of time", heads + parts)


DRAWN = {"stateDiagram-v2": state_diagram, "sequenceDiagram": sequence_diagram}


def draw(app: Any, doctree: nodes.document) -> None:
    """Replace the Mermaid blocks of a page."""
    if app.builder.format != "html":
        return
    for block in list(doctree.findall(nodes.literal_block)):
        if block.get("language") == "mermaid":
            kind, *lines = [line.strip() for line in block.astext().splitlines() if line.strip()]
            try:
                svg = DRAWN[kind](lines)
            except (KeyError, UnknownLineError) as unknown:
                logger.warning("a Mermaid diagram with %s, which docs/_ext/diagrams.py can't draw", unknown, location=block)
            else:
                block.replace_self(nodes.raw("", svg, format="html"))


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-read", draw)
    return {"parallel_read_safe": True}
