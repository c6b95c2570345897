"""Read URLs: the origin and the path that a token belongs to. The whole package reads them here and nowhere else.

The parser is urllib3's, with which `requests` prepares a URL. If two parsers disagreed about a URL (``http://a\\@b``), one host
could be sent the tokens of another.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from requests.utils import select_proxy
from urllib3.util import parse_url

DEFAULT_PORTS = {"http": 80, "https": 443}
#: A longer scope or path is replaced by its hash. It is a key in the ledger, and PostgreSQL indexes no text above 2704 bytes.
MAX_SCOPE_CHARS = 512
#: The most entries in `_origins`. When they are reached, all are dropped and read anew.
MAX_REMEMBERED_ORIGINS = 1_000

# Patterns that are texts are compiled when they are first needed: not at import, which they would slow down.

# A URL whose path urllib3's slow parser would leave as it is: nothing in it is quoted, and no segment is "." or "..".
_PLAIN_PATH = r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?((?:/(?!\.{1,2}(?:[/?#]|\Z))[A-Za-z0-9_.~-]*)+)(?:[?#]|\Z)"
#: Characters other than a slash that may end a URL's authority. A URL with one of them before its path is always parsed in full.
_UNCLEAR = r"[\\?#\s]"
#: Characters without which all parsers find the same host. Preparing a URL quotes or removes them.
_TWO_READINGS = re.compile(r"[\\\s]")
_URL_IN_TEXT = r"([A-Za-z][A-Za-z0-9+.-]*):[/\\]{1,4}[^\s/\\]\S*"
_DATABASE_USER = r"(?i)postgres(?:ql)?://[^\s/?#@:]*@[^\s@]*\Z"
# A password with a blank: the text after the host's colon isn't a port, and an @ follows on the same line. At most as long as this.
_USERINFO_WITH_BLANKS = r"(://)[^\s/?#@:\[\]]*:(?![0-9]{1,5}(?:[/?#\s'\"),.;]|\Z))[^\n@]{0,200}@"
_USERINFO_WITHOUT_SCHEME = r"[^\s/:@'\"(\[\]]+:[^\s/@'\"]+@(?=[\w\[])"
_SCHEME = r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*:)?//"


@functools.cache
def _plain_path() -> re.Pattern[str]:
    return re.compile(_PLAIN_PATH, re.ASCII)


#: Origins by the part of a URL before its path. Parsing a URL costs more than all else that traffic without a 402 needs.
_origins: dict[str, str] = {}


def origin_of(url: str) -> str:
    """Return ``scheme://host[:port]`` of an http or https URL.

    It is in lower case and IDNA encoded, without a default port and user info, and with IPv6 in brackets. A token goes only to the
    origin that issued it.

    Raises: ValueError for any other URL.
    """
    parsed = parse_url(url)
    if parsed.scheme not in DEFAULT_PORTS or not parsed.host:
        raise ValueError("an origin is that of an http or https URL with a host")
    port = "" if parsed.port in (None, DEFAULT_PORTS[parsed.scheme]) else f":{parsed.port}"
    return f"{parsed.scheme}://{parsed.host}{port}"


def origin_at(url: str) -> str:
    """Return the origin of ``url`` as `origin_of` does, from memory if a URL with the same beginning was read before.

    Raises: ValueError as `origin_of` does.
    """
    end = url.find("/", len("https://"))
    beginning = url if end < 0 else url[:end]
    origin = _origins.get(beginning)
    if origin is None:
        origin = origin_of(url)
        if not re.search(_UNCLEAR, beginning):
            if len(_origins) >= MAX_REMEMBERED_ORIGINS:
                _origins.clear()
            _origins[beginning] = origin
    return origin


def leads_to_one_server(url: str, headers: Mapping[Any, Any] | None) -> bool:
    """Return whether it is clear which server a request of ``url`` with ``headers`` is for.

    It isn't if a ``Host`` header of the caller's names another server than the URL: the token of one would go to the other. Nor if
    the URL's host can be read in two ways. `requests` prepares a URL with urllib3's parser, but connects to the host that Python's
    own finds. They differ if a program has put a URL such as ``http://one.example\\@two.example/`` on a prepared request.

    Raises: ValueError if ``url`` isn't an http URL.
    """
    names = [name for name in headers or () if _text(name).strip().lower() == "host"] if _may_name_host(headers) else []
    if not names and not _TWO_READINGS.search(url):
        return True
    origin = origin_at(url)
    connected = urlsplit(url).hostname or ""
    host = parse_url(origin).host or ""
    if connected.isascii() and connected.partition("%")[0] != host.strip("[]").partition("%")[0]:
        return False
    named = [value for name, value in (headers or {}).items() if name in names]
    try:
        return all(_host_alone(f"{origin.partition(':')[0]}://{_text(value).strip()}") == _host_alone(origin) for value in named)
    except ValueError:
        return False


def _may_name_host(headers: Mapping[Any, Any] | None) -> bool:
    """Return False if none of the names in ``headers`` is ``Host``, which is told at once, and so of nearly all requests."""
    try:
        return "host" in " ".join(headers or ()).lower()
    except TypeError:  # a name that is no str
        return True


def _host_alone(url: str) -> str:
    """Return the origin of ``url``, a URL of nothing but scheme, host and port, without a final dot of the host.

    Raises: ValueError if it has anything else.
    """
    parsed = parse_url(url)
    if parsed.auth is not None or parsed.path or parsed.query is not None or parsed.fragment is not None:
        raise ValueError("more than a host and a port")
    return re.sub(r"\.(?=(:[0-9]+)?\Z)", "", origin_of(url))


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def is_in_the_clear(url: str) -> bool:
    """Return whether others on the way can read a request of ``url``: it is of plain http, and leaves this machine.

    Raises: ValueError if ``url`` isn't an http or https URL.
    """
    parsed = parse_url(origin_at(url))
    host = (parsed.host or "").strip("[]").rstrip(".")
    if parsed.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return not (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_proxied_in_the_clear(url: str, proxies: Mapping[str, str] | None) -> bool:
    """Return whether a request of ``url`` goes to a proxy of another machine that can read it. ``proxies`` are those of its call.

    A proxy of this machine counts as this machine. So a tunnel to elsewhere that ends here may be used. https is encrypted through
    any proxy.

    Raises: ValueError if ``url`` isn't an http or https URL.
    """
    if not proxies or origin_at(url).startswith("https:"):
        return False
    proxy = select_proxy(url, dict(proxies))
    if not proxy:
        return False
    try:
        # Even an https proxy gets the request itself, to send it on.
        return is_in_the_clear(f"http://{parse_url(proxy if '://' in proxy else f'//{proxy}').netloc}")
    except ValueError:  # LocationParseError is one
        return True


def path_of(url: str) -> str:
    """Return the path of an http or https URL, without query and fragment; ``/`` if it is empty.

    The path is a key in the ledger, bounded like a scope: one above `MAX_SCOPE_CHARS` is replaced by its hash.

    Raises: ValueError for a text that can't be parsed.
    """
    plain = _plain_path().match(url)
    if plain is None:
        return bounded_key(parse_url(url).path or "/")
    path = plain[1]
    return path if len(path) <= MAX_SCOPE_CHARS else bounded_key(path)


def bounded_key(text: str, max_chars: int = MAX_SCOPE_CHARS) -> str:
    """Return ``text`` if it can be a key in any ledger, else ``sha256:`` and its hex digest."""
    # ASCII also keeps out NUL, which PostgreSQL can't store, and characters that only look alike.
    if len(text) <= max_chars and text.isascii() and text.isprintable():
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def without_userinfos(text: str) -> str:
    """Return ``text``, an error's for instance, without the ``user:password@`` of the URLs in it. A database's user stays."""
    if "@" not in text:
        return text
    text = re.sub(_USERINFO_WITH_BLANKS, r"\1", text)
    text = re.sub(_URL_IN_TEXT, _shown_url, text)
    return re.sub(_USERINFO_WITHOUT_SCHEME, "", text)


def _shown_url(found: re.Match[str]) -> str:
    url = found[0]
    if re.match(_DATABASE_USER, url):
        return url  # who logs in at a database is no secret
    start = len(found[1]) + 1
    while url[start] in "/\\":
        start += 1
    # The slashes may be any number, of any kind: the program made the URL. And URLs may follow one another without a blank.
    while (shown := without_userinfo("//" + url[start:])) != "//" + url[start:]:
        url = url[:start] + shown[2:]
    return url


def without_userinfo(url: str) -> str:
    """Return ``url`` without its ``user:password@``. Works also on a text that no library accepts as a URL."""
    if "@" not in url:
        return url
    scheme = re.match(_SCHEME, url)
    start = scheme.end() if scheme else 0
    end = next((start + at for at, char in enumerate(url[start:]) if char in "/?#"), len(url))
    authority = url[start:end]
    if "@" in authority:
        return url[:start] + authority.rpartition("@")[2] + url[end:]
    _, colon, port = authority.rpartition(":")
    if "@" in url[end:] and colon and port and not port.isdigit() and not authority.startswith("["):
        return url[:start] + url[end:].rpartition("@")[2]  # a password with an unquoted "/", "?" or "#"
    return url
