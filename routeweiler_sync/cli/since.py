"""The values of ``--since`` and ``--until``: how long ago (``7d``), or a date or time in UTC (``2026-11-01T18:30``)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _DatetimeType = click.ParamType[datetime]
else:
    _DatetimeType = click.ParamType  # not generic in older versions of click

_AGO = re.compile(r"(\d{1,6})\s*(m|min|h|d|w)", re.IGNORECASE)
_UNITS = {"m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Since(_DatetimeType):
    """A point in the past, as a `datetime` in UTC."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time that ``value`` names. Raises: click.BadParameter for anything else."""
        if isinstance(value, datetime):
            return value
        return read_since(value, datetime.now(timezone.utc)) or self.fail(
            "not a time: write for example 7d, 24h, 2026-11-01 or 2026-11-01T18:30 (UTC)", param, ctx
        )


def read_since(text: str, now: datetime) -> datetime | None:
    """Return the time that ``text`` names at ``now``, in UTC; None if it names none."""
    text = text.strip()
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
        if not text.isascii() or not re.match(r"\d{4}-\d{2}-\d{2}", text):
            return None
        time = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


#: The options ``--since`` and ``--until``, for a span that begins with the one and ends just before the other.
since_option = click.option("--since", type=Since(), help="Only from then on: 7d, 24h, 2026-11-01 or 2026-11-01T18:30 (UTC).")
until_option = click.option("--until", type=Since(), help="Only before then: in the same forms as --since.")


def check_span(since: datetime | None, until: datetime | None) -> None:
    """Raise click.UsageError if ``until`` is before ``since``."""
    if since is not None and until is not None and until < since:
        raise click.UsageError(f"--until is before --since: {until:%Y-%m-%d %H:%M} and {since:%Y-%m-%d %H:%M} UTC")
