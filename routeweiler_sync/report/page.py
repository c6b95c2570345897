"""The figures of a report as one HTML file that needs nothing else: no network, no script, no font.

The template is ``page.html.jinja``. Every text in it is escaped by Jinja2, and a Content-Security-Policy in the file forbids
scripts and requests, should an escape ever be missed.
"""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from importlib import resources
from typing import Any

from .._core.money import plain
from .._version import VERSION
from .amounts import duration, major, percent, sat, unit
from .figures import PRICE_BOUNDS_MSAT, Envelope, Figures, moment
from .texts import clean, clean_path

_LIMITS = {
    "per_call_minor_units": "per call",
    "per_hour_minor_units": "in any hour",
    "per_day_minor_units": "in any day",
    "cap_minor_units": "in all",
}


def html(figures: Figures) -> str:
    """Return the page. jinja2 and matplotlib must be installed: see `requirements.missing`."""
    import jinja2
    from markupsafe import Markup

    from .plots import plots_of

    def grouped(number: object, unit: str = "") -> Markup:
        """Return a number whose thousands stand apart to the eye. Copied or read by a program, it has no gaps."""
        whole, point, rest = str(number).partition(".")
        if len(whole) > 4:
            first = len(whole) % 3 or 3
            parts = [whole[at : at + 3] for at in range(first, len(whole), 3)]
            whole = Markup("").join([whole[:first], *(Markup("<i>{}</i>").format(part) for part in parts)])
        return Markup("<span>{}{}{}</span>").format(whole, point + rest, unit and f" {unit}")

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({"page": resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")}),
    )
    environment.filters.update(
        clean=clean,
        path=clean_path,
        count=grouped,
        sat=lambda amount_msat: grouped(sat(amount_msat), "sat"),
        minor=lambda amount, currency: grouped(_main(amount, currency), unit(currency)),
        micro=lambda micro, currency: grouped(major(micro, currency), clean(unit(currency))),
        duration=duration,
        percent=percent,
        time=lambda time: time if time is None else f"{time:%Y-%m-%d %H:%M}",
        begin=_begin,
        moment=moment,
    )
    return environment.get_template("page").render(
        figures=figures,
        plots=plots_of(figures),
        envelopes=[_envelope(each) for each in figures.envelopes],
        prices=list(zip(_brackets(), figures.by_price, strict=True)),
        version=VERSION,
        ledgers=sum(source.kind == "ledger" for source in figures.sources),
        share=lambda part: 100 * part.total_msat / figures.spent.total_msat if figures.spent.total_msat else 0.0,
        safe_svg=Markup,  # drawn by `plots`, without a text of anybody else's
    )


def _brackets() -> list[str]:
    """Return the names of the brackets of prices."""
    bounds = [sat(bound) for bound in PRICE_BOUNDS_MSAT]
    inner = [f"{low} to {high} sat" for low, high in itertools.pairwise(bounds)]
    return [f"below {bounds[0]} sat", *inner, f"{bounds[-1]} sat or more"]


def _main(minor_units: Decimal | int, currency: str) -> str:
    return major(int(Decimal(minor_units).scaleb(6)), currency)


def _begin(time: datetime, period: str) -> str:
    if period == "hour":
        return f"{time:%Y-%m-%d %H:%M}"
    return f"{time:%Y-%m}" if period == "month" else f"{time:%Y}" if period in ("year", "century") else f"{time:%Y-%m-%d}"


def _envelope(envelope: Envelope) -> dict[str, Any]:
    """Return an envelope for the template: each limit with what counts against it, what is left, and the share used (0 to 100)."""
    row = envelope.row
    limits = []
    for field, name in _LIMITS.items():
        limit = getattr(row.limits, field)
        if limit is None:
            continue
        used = row.used_minor_units[field]
        share = 100.0 if limit == 0 else min(100.0, float(used) * 100 / limit)
        limits.append({"name": name, "limit": limit, "used": used, "left": row.headrooms_minor_units[field], "share": share})
    return {
        "id": row.id,
        "ledger": envelope.ledger,
        "currency": row.limits.cap_currency,
        "frozen": row.frozen_id is not None,
        "settled": row.settled_minor_units,
        "reserved": row.reserved_minor_units,
        "headroom": row.headroom_minor_units,
        "headroom_value": None if row.headroom_minor_units is None else plain(row.headroom_minor_units),
        "limits": limits,
    }
