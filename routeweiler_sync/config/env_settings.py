"""What the environment says. Read when it is needed, never at import.

    ROUTEWEILER_LEDGER    the ledger: a path or sqlite:///…; else ledger.db in the user's state folder
    ROUTEWEILER_TRACE     the trace: a path; SQLite where it ends in .db or .sqlite, else JSON lines
    ROUTEWEILER_BUDGET    limits, e.g. "1000 sat/call, 50000 sat/day"; "none" for no limit, in so many words
    ROUTEWEILER_NETWORK   bitcoin, bitcoin-testnet, bitcoin-signet or bitcoin-regtest; else the node is asked

The node's variables (ROUTEWEILER_LNDCONNECT, LND_GRPC_HOST, …) are `LndClient.from_env`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._core import env_vars

if TYPE_CHECKING:
    from ..budgets.schema import BudgetEnvelope
    from ..trace.sink import TraceSink

_LIMIT = re.compile(r"\s*(\d+)\s*([a-z]{3})\s*(?:/\s*(call|hour|day))?\s*", re.IGNORECASE)
_FIELD = {
    "call": "per_call_minor_units",
    "hour": "per_hour_minor_units",
    "day": "per_day_minor_units",
    "": "cap_minor_units",
}


def ledger_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where the ledger is when a session isn't told: ``$ROUTEWEILER_LEDGER``, else ``ledger.db`` in the user's state folder."""
    given = environ.get(env_vars.LEDGER)
    if given:
        return given
    import platformdirs

    from ..errors import LedgerError

    try:
        folder = platformdirs.user_state_dir("routeweiler", appauthor=False)
    except (RuntimeError, OSError) as error:  # no home: a container with a made-up user
        raise LedgerError(
            f"There is no state folder for the ledger: {error}.", advice=f"Name a file: ledger=…, or {env_vars.LEDGER}."
        ) from error
    return str(Path(folder) / "ledger.db")


def trace_sink(environ: Mapping[str, str] = os.environ) -> TraceSink | None:
    """The trace that ``$ROUTEWEILER_TRACE`` names, or None."""
    path = environ.get(env_vars.TRACE)
    return sink_at(path) if path else None


def sink_at(path: str) -> TraceSink:
    """A trace in the file ``path``: SQLite where it ends in .db or .sqlite, else JSON lines."""
    from ..trace.sink import TraceSink

    return TraceSink.sqlite(path) if path.endswith((".db", ".sqlite", ".sqlite3")) else TraceSink.jsonl(path)


def budget(environ: Mapping[str, str] = os.environ) -> BudgetEnvelope | None:
    """The envelope that ``$ROUTEWEILER_BUDGET`` describes, the safe default where it is unset, None where it says ``none``.

    Raises ValueError for what can't be read: a budget that isn't understood must not become no budget.
    """
    from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope

    text = environ.get(env_vars.BUDGET, "").strip()
    if not text:
        return SAFE_DEFAULT
    if text.lower() == "none":
        return None
    limits: dict[str, int] = {}
    currencies = set()
    for part in text.split(","):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{env_vars.BUDGET}: {part.strip()!r} isn't a limit. Write e.g. '1000 sat/call, 50000 sat/day' (call, hour, "
                "day, or no '/…' for a lifetime), or 'none'."
            )
        field = _FIELD[(match[3] or "").lower()]
        if field in limits:
            raise ValueError(f"{env_vars.BUDGET}: {part.strip()!r} gives a limit that was given before.")
        limits[field] = int(match[1])
        currencies.add(match[2].lower())
    if len(currencies) > 1:
        raise ValueError(f"{env_vars.BUDGET}: one budget has one currency.")
    currency = currencies.pop()
    return BudgetEnvelope(
        SAFE_DEFAULT.id if currency == "sat" else f"default-{currency}",
        cap_minor_units=limits.get("cap_minor_units"),
        cap_currency=currency,
        per_call_minor_units=limits.get("per_call_minor_units"),
        per_hour_minor_units=limits.get("per_hour_minor_units"),
        per_day_minor_units=limits.get("per_day_minor_units"),
    )
