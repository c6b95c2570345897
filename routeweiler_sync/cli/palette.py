"""The colours of what commands print: readable on a black terminal and on a white one.

A terminal chooses itself what "yellow" is, and many choose one that can't be read on white. The colours here are of the 256 that
every terminal shows alike, and their contrast with black and with white is at least `CONTRAST_MIN`. (A terminal of 16 colours gets
the nearest of its own.)
"""

from __future__ import annotations

from rich.theme import Theme

#: The least contrast, as WCAG computes it, of each colour with white and with black. No colour can have more than 4.6 with both.
CONTRAST_MIN = 3.8

_COLOURS = {"green": "color(28)", "yellow": "color(130)", "red": "color(160)", "cyan": "color(30)"}

#: For ``Console(theme=THEME)``. The names of colours stay what they were: ``green`` and ``bold green`` mean these.
THEME = Theme({f"{weight}{name}": f"{weight}{colour}" for name, colour in _COLOURS.items() for weight in ("", "bold ")})
