"""The name of a PostgreSQL ledger: libpq's URI, and that URI without its secrets. Pure but for what this process was given.

The rest of the URI is libpq's to understand (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from ...errors import LedgerError

SCHEMES = ("postgresql", "postgres")
#: Parameters that no text of ours may show.
SECRET_PARAMETERS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})

#: What was given with a password, by the name without: a copy of a session knows the name only.
_given: dict[str, tuple[str, tuple[str, ...]]] = {}

#: Who writes one of these as ``name=value`` means libpq's other form of an address, not a file.
_CONNINFO_NAMES = frozenset({"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"})

_HOST = re.compile(r"(\[[^][]*]|[^][:]*)(:[0-9]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """``url`` is without secrets, ``conninfo`` with them; ``secrets`` are what no error text may repeat."""

    url: str
    conninfo: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def read_url(text: str) -> Address:
    """The address that ``text`` gives. Raises LedgerError, which shows nothing of ``text``, for what libpq would read otherwise.

    Where ``text`` has no password and this process was given the same URL with one, that one is meant.
    """
    scheme, _, rest = text.partition("://")
    authority, tail = _split(rest)
    userinfo, at, hosts = authority.rpartition("@")
    path, question, query = tail.partition("?")
    user, _, password = userinfo.partition(":")
    pairs = [pair for pair in query.split("&") if pair]
    named = [(unquote(pair.partition("=")[0]), unquote(pair.partition("=")[2]), pair) for pair in pairs]
    well_formed = (
        scheme in SCHEMES
        and "@" not in userinfo + tail
        and all(_HOST.fullmatch(host) for host in hosts.split(","))
        and all("=" in pair for pair in pairs)
    )
    if not well_formed:
        raise LedgerError(
            "The PostgreSQL URL of the ledger can't be read: a character of its user, password or parameters isn't "
            "percent-encoded (@ is %40, / is %2F, ? is %3F).",
            advice="Correct it: postgresql://user:password@host/database.",
        )
    shown = "&".join(pair for name, _, pair in named if name not in SECRET_PARAMETERS)
    url = f"postgresql://{user}{at if user else ''}{hosts}{path}{question if shown else ''}{shown}"
    hidden = [value for name, value, _ in named if name in SECRET_PARAMETERS]
    secrets = tuple(secret for secret in (unquote(password), password, *hidden) if secret)
    if secrets:
        _given[url] = (f"postgresql://{rest}", secrets)
    conninfo, secrets = _given.get(url, (url, ()))
    return Address(url=url, conninfo=conninfo, secrets=secrets)


def is_conninfo(text: str) -> bool:
    """Whether ``text`` is libpq's ``host=… password=…``. As a file's name it would show its password in every text."""
    named = re.findall(r"(\w+)\s*=", text) if re.match(r"\s*\w+\s*=", text) else []
    return not _CONNINFO_NAMES.isdisjoint(name.lower() for name in named)


def _split(rest: str) -> tuple[str, str]:
    """(authority, the rest from its first ``/`` or ``?``)."""
    found = re.search(r"[/?]", rest)
    return (rest, "") if found is None else (rest[: found.start()], rest[found.start() :])
