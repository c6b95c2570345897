"""Ledger, trace and budget as environment variables describe them. Variables are read when needed, never at import.

    ROUTEWEILER_LEDGER    the ledger: a path or sqlite:///…; else ledger.db in the user's state folder
    ROUTEWEILER_TRACE     the trace: a path; SQLite where it ends in .db or .sqlite, else JSON lines
    ROUTEWEILER_BUDGET    limits, e.g. "1000 sat/call, 50000 sat/day"; "none" for no limit
    ROUTEWEILER_ENVELOPE  in place of ROUTEWEILER_BUDGET: the id of an envelope in the ledger
    ROUTEWEILER_AGENT     the agent whose payments they are
    ROUTEWEILER_NETWORK   bitcoin, bitcoin-testnet, bitcoin-signet or bitcoin-regtest; else the node is asked

ROUTEWEILER_NETWORK is read in `environment`. The variables of the node (ROUTEWEILER_LNDCONNECT, LND_GRPC_HOST, …) are left to
`funding.lnd.lndconnect`, the names of all variables to `_core.env_vars`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._core import env_vars
from .._core.log import log
from .._core.secret_text import kind_of, problem_of_path, shown

if TYPE_CHECKING:
    from ..budgets.schema import BudgetEnvelope
    from ..trace.sink import TraceSink

_LIMIT = re.compile(r"\s*(\d{1,40})\s*([a-z]{3})\s*(?:/\s*(call|hour|day))?\s*", re.IGNORECASE)
_FIELD = {
    "call": "per_call_minor_units",
    "hour": "per_hour_minor_units",
    "day": "per_day_minor_units",
    "": "cap_minor_units",
}


class VariableError(ValueError):
    """The value of an environment variable can't be used. ``name`` is the variable's name, with which the text begins."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


def ledger_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the ledger of a session that names none: ``$ROUTEWEILER_LEDGER``, else ``ledger.db`` in the user's state folder.

    Raises: LedgerError if there is no such folder.
    """
    given = environ.get(env_vars.LEDGER)
    if given:
        return given
    import platformdirs

    from ..errors import LedgerError

    try:
        folder = platformdirs.user_state_dir("routeweiler", appauthor=False)
    except (RuntimeError, OSError) as error:  # no home folder, as in a container with an unknown user id
        raise LedgerError(
            f"The user has no state folder for the ledger: {error}.",
            advice=f"Name a file by ledger=… or {env_vars.LEDGER}.",
            shell_advice=f"Name a file by {env_vars.LEDGER}.",
        ) from error
    return str(Path(folder) / "ledger.db")


def trace_sink(environ: Mapping[str, str] = os.environ) -> TraceSink | None:
    """Return the trace that ``$ROUTEWEILER_TRACE`` names; None if it is unset, or looks like a secret, which is logged."""
    path = environ.get(env_vars.TRACE)
    if path and problem_of_path(env_vars.TRACE, path) is not None:
        log.warning("%s isn't the path of a trace, and may be a secret. No trace is written.", env_vars.TRACE)
        return None
    return sink_at(path) if path else None


def sink_at(path: str) -> TraceSink:
    """Return a trace in the file ``path``: SQLite if it ends in .db, .sqlite or .sqlite3, else JSON lines."""
    from ..trace.sink import TraceSink

    return TraceSink.sqlite(path) if path.endswith((".db", ".sqlite", ".sqlite3")) else TraceSink.jsonl(path)


def agent_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the agent that ``$ROUTEWEILER_AGENT`` names, or None.

    Raises: VariableError for a text that can't be an id.
    """
    return _id_in(env_vars.AGENT, environ)


def _id_in(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the id of an envelope or an agent in the variable ``name``; None if it is unset or blank. Raises: VariableError."""
    from ..budgets.schema import MAX_ID_BYTES, can_be_id

    text = environ.get(name, "").strip()
    if text and (not can_be_id(text) or kind_of(text) != "a secret"):
        raise VariableError(
            name, f"it isn't an id, which has at most {MAX_ID_BYTES} bytes in UTF-8. It isn't shown: it may be a secret."
        )
    return text or None


def budget(environ: Mapping[str, str] = os.environ) -> BudgetEnvelope | str | None:
    """Return the budget that the environment names.

    It is the id in ``$ROUTEWEILER_ENVELOPE``, or else the envelope that ``$ROUTEWEILER_BUDGET`` describes: the safe default if that
    is unset, None if it says ``none``.

    Raises: VariableError for a text that can't be read, and if both are set: a budget that isn't understood must not become no
    budget.
    """
    from ..budgets.schema import SAFE_DEFAULT

    text = environ.get(env_vars.BUDGET, "").strip()
    envelope_id = _id_in(env_vars.ENVELOPE, environ)
    if envelope_id is not None and text:
        what = f"the envelope that it names has its limits in the ledger, and {env_vars.BUDGET} gives others. Unset one of them."
        raise VariableError(env_vars.ENVELOPE, what)
    if envelope_id is not None:
        return envelope_id
    if not text:
        return SAFE_DEFAULT
    if text.lower() == "none":
        return None
    try:
        return _envelope(text)
    except ValueError as error:
        raise VariableError(env_vars.BUDGET, str(error)) from None


def _envelope(text: str) -> BudgetEnvelope:
    """Return the envelope that ``text`` describes. Raises: ValueError."""
    from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope

    limits: dict[str, int] = {}
    currencies = set()
    for part in text.split(","):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{shown(part.strip())} isn't a limit. Write for example '1000 sat/call, 50000 sat/day' (call, "
                "hour or day; without '/…' the limit is for the lifetime), or 'none'."
            )
        field = _FIELD[(match[3] or "").lower()]
        if field in limits:
            raise ValueError(f"{shown(part.strip())} repeats a limit that is set already.")
        limits[field] = int(match[1])
        currencies.add(match[2].lower())
    if len(currencies) > 1:
        raise ValueError("all limits of a budget must have the same currency.")
    currency = currencies.pop()
    return BudgetEnvelope(
        SAFE_DEFAULT.id if currency == "sat" else f"default-{currency}",
        cap_minor_units=limits.get("cap_minor_units"),
        cap_currency=currency,
        per_call_minor_units=limits.get("per_call_minor_units"),
        per_hour_minor_units=limits.get("per_hour_minor_units"),
        per_day_minor_units=limits.get("per_day_minor_units"),
    )
