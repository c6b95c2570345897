"""Keep secrets out of texts: recognize in a value what may be a macaroon, key, preimage, token or password, and leave it out.

Users put values in the wrong place: a macaroon where its path belongs, an lndconnect URI as a host. An error that repeats such a
value puts a wallet into a log. Every text that repeats a value from a program, the environment or a wallet goes through here.

What is a path stays readable: its names are words, and what was chosen at random isn't made of words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

#: A run of hex or base64 characters is a possible secret from this length on. Ids of 32 hex digits are common, and are shown.
SECRET_CHARS_MIN = 33
#: A longer text isn't searched but left out as a whole. It bounds the time that a hostile text can take.
TEXT_CHARS_MAX = 100_000
#: A longer repr is cut.
SHOWN_CHARS_MAX = 500
#: Characters that aren't made of words: so many make a run a secret. With both cases in it, it is base64, and fewer are enough.
_RANDOM_CHARS_MIN, _RANDOM_CHARS_MIN_MIXED = 33, 25
#: Words are pieces (a capital with small letters, capitals, digits) of at least this length on average.
_WORD_CHARS = 3
#: Where what was given in place of something else belongs.
WHERE = {
    "a macaroon": "Give a macaroon itself, in hex, as macaroon_hex= or LND_MACAROON_HEX, or in an lndconnect URI as "
    "ROUTEWEILER_LNDCONNECT",
    "an lndconnect URI": "Give an lndconnect URI as ROUTEWEILER_LNDCONNECT, or to LndClient.from_lndconnect()",
    "a Nostr Wallet Connect URI": "Give a Nostr Wallet Connect URI as NWC_URL, or to NwcClient()",
    "a certificate": "Give the text of a certificate as tls_cert_pem=, its hex as LND_TLS_CERT_HEX, or its path",
    "a URL with a password": "Give the URL of a ledger as ledger= or ROUTEWEILER_LEDGER",
    "a private key": "No private key is needed: give lnd's tls.cert",
    "a secret": "Give a macaroon itself, in hex, as macaroon_hex= or LND_MACAROON_HEX, or in an lndconnect URI as "
    "ROUTEWEILER_LNDCONNECT",
}
#: The first bytes of every macaroon of lnd, in hex and in base64.
_LND_MACAROON = ("0201036c6e64", "AgEDbG5k")

_HEX = re.compile(r"(?:[0-9A-Fa-f][\s:,-]?){32,}[0-9A-Fa-f]")
_RUN = re.compile(r"[A-Za-z0-9+/_-]{33,}={0,2}")
_ESCAPED_BREAK = re.compile(r"(?:\\[rnt])+")
_BASE32 = re.compile(r"(?=[A-Z]*[2-7])[A-Z2-7]{33,}")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_PEM = re.compile(r"-----BEGIN [\s\S]*?(?:-----END [A-Z0-9 ]*-----|\Z)")
_WHOLE = re.compile(r"lndconnect:\S+|nostr\+walletconnect:\S+", re.IGNORECASE)
#: One slash is enough: a path object has made one of two.
_USERINFO = re.compile(r"(?<=:/)/?[^\s'\"/?#:@]*:(?!\d+[/?#])[^\s'\"]*@")
_NAMED = re.compile(
    r"(?<![A-Za-z0-9])((?:ssl)?passw(?:or)?d|passphrase|oauth_client_secret|scram_client_key|scram_server_key|api_?key|secret"
    r"|macaroon|preimage)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&;,'\")]+)",
    re.IGNORECASE,
)


def without_secrets(text: str, keep: Iterable[str] = ()) -> str:
    """Return ``text`` with a remark in place of whatever in it may be a secret.

    ``keep`` are texts that are known to be none, such as a payment hash.
    """
    if len(text) > TEXT_CHARS_MAX:
        return _remark(text)
    kept = {each.lower() for each in keep}
    text = _PEM.sub(_hidden, text)
    text = _WHOLE.sub(_hidden, text)
    text = without_passwords(text)
    text = _HEX.sub(lambda found: found[0] if found[0].lower() in kept else _hidden(found), text)
    return _RUN.sub(lambda found: found[0] if _is_onion(found) or not _is_random(found[0], kept) else _hidden(found), text)


def without_passwords(text: str) -> str:
    """Return ``text`` without the user info of URLs that holds a password, and without the values of ``password=`` and the like."""
    text = _USERINFO.sub(lambda found: "/…@" if found[0].startswith("/") else "…@", text)
    return _NAMED.sub(lambda found: found[0] if found[3].startswith("…") else f"{found[1]}{found[2]}…", text)


def may_be_secret(value: object) -> bool:
    """Return whether ``value``, a text, bytes or a path, holds something that may be a secret."""
    text = _text(value)
    unprintable = sum(not each.isprintable() for each in text)
    if len(text) >= SECRET_CHARS_MIN and unprintable * 8 > len(text):  # the bytes of a macaroon, or the same as a text
        return True
    # Within a repr, or a variable that was written on one line, a new line is a backslash and an n.
    return any(without_secrets(each) != each for each in {text, unquote(text), _ESCAPED_BREAK.sub("\n", text)})


def shown(value: object) -> str:
    """Return the repr of ``value`` for an error text, or a remark if ``value`` may be a secret or has no repr."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an object of a program's own may raise anything
        return f"a {type(value).__name__}"
    if may_be_secret(value) or may_be_secret(text):
        return _remark(_text(value))
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…"


def kind_of(value: object) -> str:
    """Return what ``value``, which may be a secret, looks like: ``an lndconnect URI``, ``a macaroon``, … or ``a secret``."""
    text = _text(value).strip().strip("'\"")
    if text.lower().startswith("lndconnect:"):
        return "an lndconnect URI"
    if text.lower().startswith("nostr+walletconnect:"):
        return "a Nostr Wallet Connect URI"
    if "-----BEGIN" in text:
        return "a private key" if "PRIVATE KEY" in text else "a certificate"
    if text.lower().startswith(_LND_MACAROON[0]) or text.startswith((_LND_MACAROON[1], "\x02\x01\x03lnd")):
        return "a macaroon"
    if _USERINFO.search(text) is not None:
        return "a URL with a password"
    return "a secret"


def is_misplaced(path: object) -> bool:
    """Return whether ``path`` looks like a secret that was given in place of the path of its file.

    The names of folders don't count, because some are made from digests.
    """
    text = _text(path)
    name = re.split(r"[/\\]", text.rstrip("/\\ \t\r\n"))[-1]
    is_one_run = _RUN.fullmatch(text.strip()) is not None and not text.lstrip().startswith(("/", "~", "."))
    is_no_path = is_one_run or "\n" in text or "\0" in text
    return kind_of(text) != "a secret" or may_be_secret(name) or (is_no_path and may_be_secret(text))


def problem_of_path(name: str, path: object) -> str | None:
    """Return what is wrong with ``path``, the value of ``name``, if it looks like a secret in place of a path; None if it doesn't.

    A file of that name may exist all the same.
    """
    try:
        if not is_misplaced(path) or os.path.exists(os.path.expanduser(os.fspath(path))):  # type: ignore[call-overload]
            return None
    except (TypeError, ValueError):  # no path at all, or a NUL in it
        pass
    kind = kind_of(path)
    return f"{name} isn't a path: it looks like {kind}, and so isn't shown. {WHERE[kind]}"


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("latin-1")
    if isinstance(value, str):
        return str.__str__(value)
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - an object of a program's own may raise anything
        return ""


def _hidden(found: re.Match[str]) -> str:
    return _remark(found[0])


def _remark(text: str) -> str:
    return f"<{len(text)} characters that may be a secret>"


def _is_onion(found: re.Match[str]) -> bool:
    """Return whether the run is the host of a Tor address, a public key of 56 characters."""
    return found.string.startswith(".onion", found.end())


def _is_random(run: str, kept: set[str]) -> bool:
    """Return whether ``run``, characters of base64 and of paths, is too random to be made of words."""
    if run.lower() in kept:
        return False
    random_chars = 0
    for segment in re.split(r"[+/_=-]+", run):
        pieces = len(_PIECE.findall(segment))
        if (pieces > 4 and len(segment) < _WORD_CHARS * pieces) or _BASE32.fullmatch(segment):
            random_chars += len(segment)
    mixed = run.lower() != run and run.upper() != run
    return random_chars >= (min(_RANDOM_CHARS_MIN_MIXED, len(run) // 3) if mixed else _RANDOM_CHARS_MIN)
