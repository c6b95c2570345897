"""The URL of a PostgreSQL ledger: libpq's connection URI, and the same without its secrets. No I/O.

The module remembers, for this process, which URLs were given with a password. Everything else in the URI is left to libpq
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from ..._core import env_vars
from ..._core.secret_text import without_passwords
from ...errors import LedgerError

SCHEMES = ("postgresql", "postgres")
#: Parameters whose values must not be shown in any text of this package.
SECRET_PARAMETERS = frozenset(
    {"password", "passwd", "pass", "pwd", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)

#: By URL without secrets: the full URL and its secrets, if this process was given them, be it by its environment. An unpickled
#: session has only the URL without.
_given: dict[str, tuple[str, tuple[str, ...]]] = {}

#: Values of ``ROUTEWEILER_LEDGER`` that were read for their passwords.
_looked_at: set[str] = set()

#: A text with one of these as ``name=value`` is libpq's other form of an address, not the name of a file.
_CONNINFO_NAMES = frozenset({"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"})

#: A text that was percent-encoded more often than this isn't decoded further.
_ENCODINGS_MAX = 5
#: libpq refuses these with an error that repeats the whole value, which may be the password.
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SEARCH_PATH = re.compile(r"(?:^|\s)(?:-c\s*|--)search[_-]path=((?:\\.|[^\\\s])*)", re.IGNORECASE)
_HOST = re.compile(r"(\[[^][]*]|[^][:]*)(:[0-9]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of a database: ``url`` without secrets, ``conninfo`` with them. No error text may repeat any of ``secrets``."""

    url: str
    conninfo: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def read_url(text: str) -> Address:
    """Return the address that the URL ``text`` gives.

    If ``text`` has no password, and this process was given the same URL with one before, or has it in ``ROUTEWEILER_LEDGER``, that
    password is used.

    Raises: LedgerError for a URL that libpq might read in another way. Its text shows nothing of ``text``.
    """
    scheme, _, rest = text.partition("://")
    authority, tail = _split(rest)
    userinfo, at, hosts = authority.rpartition("@")
    path, question, query = tail.partition("?")
    user, _, password = userinfo.partition(":")
    pairs = [pair for pair in query.split("&") if pair]
    named = [(_unquoted(pair.partition("=")[0]).strip().lower(), unquote(pair.partition("=")[2]), pair) for pair in pairs]
    well_formed = (
        scheme in SCHEMES
        and "@" not in userinfo + tail
        and all(_HOST.fullmatch(host) for host in hosts.split(","))
        and all("=" in pair for pair in pairs)
        and ":" not in _unquoted(user)
        and not _BAD_ESCAPE.search(rest)
        and rest.isprintable()  # libpq would stop reading at a NUL
    )
    if not well_formed:
        raise LedgerError(
            "The PostgreSQL URL of the ledger can't be read: a character in its user, password or parameters must be "
            "percent-encoded (@ is %40, / is %2F, ? is %3F).",
            advice="Correct the URL: postgresql://user:password@host/database.",
        )
    shown = "&".join(pair for name, _, pair in named if name not in SECRET_PARAMETERS)
    url = f"postgresql://{user}{at if user else ''}{hosts}{path}{question if shown else ''}{shown}"
    if without_passwords(_unquoted(url)) != _unquoted(url):
        raise LedgerError(
            "The PostgreSQL URL of the ledger can't be read: it holds a password in a place where libpq looks for none.",
            advice="Correct the URL: postgresql://user:password@host/database.",
        )
    hidden = [each for name, value, pair in named if name in SECRET_PARAMETERS for each in (value, pair.partition("=")[2])]
    secrets = tuple(secret for secret in (unquote(password), password, *hidden) if secret)
    if secrets:
        _given[url] = (f"postgresql://{rest}", secrets)
    if not secrets and url not in _given:
        _note_the_environments()
    conninfo, secrets = _given.get(url, (url, ()))
    return Address(url=url, conninfo=conninfo, secrets=secrets)


def _note_the_environments() -> None:
    """Note the URL of ``ROUTEWEILER_LEDGER``: where a session is unpickled, that may have the password."""
    named = os.environ.get(env_vars.LEDGER, "")
    if named not in _looked_at and named.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        _looked_at.add(named)
        with contextlib.suppress(LedgerError):  # whoever uses that URL is told what is wrong with it
            read_url(named)


def search_path_in(options: str) -> str | None:
    """Return the search_path that libpq's parameter ``options`` sets (the server's command line), or None."""
    found = _SEARCH_PATH.findall(options)
    return re.sub(r"\\(.)", r"\1", found[-1]) if found else None


def split_path(search_path: str) -> list[str]:
    """Return the schemas of ``search_path``, as far as two spellings of one can be told apart."""
    return [schema.strip().strip('"') for schema in search_path.split(",")]


def is_conninfo(text: str) -> bool:
    """Return whether ``text`` has libpq's form ``host=… password=…``, or is a URL without its scheme, ``user:password@host``.

    Taken as the name of a file, its password would be shown in every text that names the ledger.
    """
    if re.match(r"(?![A-Za-z]:[/\\])\s*(//)?[^\s/\\:]+:\S*@", text):
        return True
    named = re.findall(r"(\w+)\s*=", text) if re.match(r"\s*\w+\s*=", text) else []
    return not _CONNINFO_NAMES.isdisjoint(name.lower() for name in named)


def _unquoted(text: str) -> str:
    """Return ``text`` without percent-encoding, even if it was encoded several times."""
    for _ in range(_ENCODINGS_MAX):
        text = unquote(text)
    return text


def _split(rest: str) -> tuple[str, str]:
    """Split what follows ``://`` into the authority and the rest, which begins with the first ``/`` or ``?``."""
    found = re.search(r"[/?]", rest)
    return (rest, "") if found is None else (rest[: found.start()], rest[found.start() :])
