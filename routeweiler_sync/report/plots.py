"""The plots of a report, drawn by matplotlib as SVG that stands in an HTML page and takes the page's colours and fonts.

Each plot is drawn in two widths; the page shows the one that fits. No text of anybody else's is drawn here.

matplotlib must be installed: see `requirements.missing`.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from .amounts import duration
from .figures import LATENCY_BOUNDS_MS, Figures, Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The widths of a plot, in CSS pixels: on a wide page, and on a phone.
WIDE_PX, NARROW_PX = 900, 330
#: Colours as matplotlib writes them, and the page's in their place. None of these is in matplotlib's own palettes.
_COLOURS = {"#010203": "var(--ink)", "#010204": "var(--line)", "#010205": "var(--first)", "#010206": "var(--second)"}
_INK, _LINE, _FIRST, _SECOND = _COLOURS
_FONT_PX = 12
_TICKS_WIDE, _TICKS_NARROW = 8, 3
_TIME_FORMATS = {"hour": "%d %b %H:%M", "day": "%d %b", "week": "%d %b", "month": "%b %Y", "year": "%Y", "century": "%Y"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and takes the page's font
    "text.parse_math": False,
    "font.size": _FONT_PX,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _LINE,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "xtick.major.pad": 9,  # else the first label touches the zero beside it
    "legend.frameon": False,
    "legend.borderaxespad": 0.0,
}

#: One plot: its name, what it shows in words, and its SVG in both widths.
Plot = tuple[str, str, str, str]


def plots_of(figures: Figures) -> dict[str, Plot]:
    """Return the plots of ``figures`` by name: ``spending`` and ``latency``, as far as there is something to draw."""
    plots: dict[str, Plot] = {}
    with _own_style():
        if figures.by_period:
            label = f"Spent in each {figures.period}, in sat, and the routing fees in it"
            plots["spending"] = _both("spending", label, 300, lambda figure, ticks: _spending(figure, figures, ticks))
        if figures.settlement is not None or figures.service is not None:
            label = "How many payments and calls took how long"
            plots["latency"] = _both("latency", label, 200, lambda figure, ticks: _latency(figure, figures, ticks))
    return plots


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw with this module's settings alone, whatever a matplotlibrc of the user or in the folder says. Quietly."""
    import matplotlib

    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fonts: the browser has its own
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(cast(Any, _STYLE))  # typed by name since 3.11
            yield
    finally:
        log.setLevel(level)


def _both(name: str, label: str, height_px: int, draw: Callable[[Figure, int], None]) -> Plot:
    return (
        name,
        label,
        _svg(f"{name}-wide", WIDE_PX, height_px, lambda figure: draw(figure, _TICKS_WIDE)),
        _svg(f"{name}-narrow", NARROW_PX, height_px, lambda figure: draw(figure, _TICKS_NARROW)),
    )


def _svg(name: str, width_px: int, height_px: int, draw: Callable[[Figure], None]) -> str:
    """Return the SVG that ``draw`` makes, for use within HTML: without a header, with ids of its own and the page's colours."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = name  # the same figures make the same file
    figure = Figure(figsize=(width_px / 72, height_px / 72), dpi=72, layout="constrained")
    canvas: Any = FigureCanvasSVG(figure)
    draw(figure)
    file = io.StringIO()
    canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", svg)
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg.strip()


def _spending(figure: Figure, figures: Figures, ticks: int) -> None:
    periods = figures.by_period
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    at = range(len(periods))
    spent, fees = [_sat(each.total_msat) for _, each in periods], [_sat(each.fee_msat) for _, each in periods]
    upper.bar(at, spent, color=_FIRST, width=0.8)
    lower.bar(at, fees, color=_SECOND, width=0.8)
    for axes, name in ((upper, "spent, sat"), (lower, "fees, sat")):
        _finish(axes, name)
    step = max(1, -(-len(periods) // ticks))
    shown = range(0, len(periods), step)
    lower.set_xticks(list(shown), [f"{periods[each][0]:{_TIME_FORMATS[figures.period]}}" for each in shown])
    lower.set_xlim(-0.6, max(len(periods), 6) - 0.4)
    upper.tick_params(axis="x", length=0)


def _latency(figure: Figure, figures: Figures, ticks: int) -> None:
    axes = figure.subplots()
    brackets = range(len(LATENCY_BOUNDS_MS) + 1)
    drawn: list[tuple[Latency | None, str, str]] = [
        (figures.settlement, "payment, until the node has settled it", _FIRST),
        (figures.service, "call, until the answer", _SECOND),
    ]
    series = [(each, label, colour) for each, label, colour in drawn if each is not None]
    width = 0.8 / len(series)
    for number, (latency, label, colour) in enumerate(series):
        places = [at - 0.4 + (number + 0.5) * width for at in brackets]
        axes.bar(places, latency.brackets, width=width * 0.92, color=colour, label=label)
    _finish(axes, "how many")
    shown = range(0, len(LATENCY_BOUNDS_MS), 1 if ticks == _TICKS_WIDE else 2)
    axes.set_xticks([at + 0.5 for at in shown], [duration(LATENCY_BOUNDS_MS[at]) for at in shown])
    axes.set_xlim(-0.6, len(brackets) - 0.4)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=1, handlelength=1)


def _finish(axes: Axes, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(bottom=0)
    axes.set_ylabel(name)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _sat(amount_msat: int) -> float:
    return amount_msat / 1000


def _short(value: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
