"""Write the credential of a charge, and hide credentials and preimages in a text.

Knows the form of a credential. Which one to send is left to `paywall`, and where challenges are kept to `ledger`.

A credential is ``Payment <base64url of {"challenge": {…}, "payload": {"preimage": "<hex>"}}>``. The server checks an HMAC over the
parameters of its challenge, so they go back exactly as they came. The preimage opens the page until it is used: it is the secret.
The challenge is none.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping

#: The scheme's name, in upper case as `schemes` compares it.
NAMES = ("PAYMENT",)
#: The scheme as it is sent: aperture compares it with regard to case.
SCHEME = "Payment"

PREIMAGE_BYTES = 32
#: aperture refuses a longer credential, and Python's http.client a longer line.
MAX_CREDENTIAL_CHARS = 64 * 1024
DEFAULT_HEADER = "Authorization"
#: The only other header that a challenge may ask for.
ALTERNATE_HEADER = "Payment-Authorization"

#: The parameters of a challenge that go back to the server: all that the drafts know.
ECHOED = ("id", "realm", "method", "intent", "request", "expires", "digest", "description", "opaque", "header")

_BASE64URL = r"[A-Za-z0-9_+/-]"
# JSON in base64 begins like this, and no hash does: hex has neither letter.
_JSON = "e[wy]"
_CREDENTIAL = re.compile(rf"(?i:Payment) +{_JSON}{_BASE64URL}{{22,{MAX_CREDENTIAL_CHARS}}}={{0,2}}")

# Looser than _CREDENTIAL: a credential that a log has cut short or folded must be found too. The preimage is at its end, so what is
# shorter than the least length holds nothing secret, and words of a sentence are shorter ("Payment authorization failed").
_CREDENTIAL_IN_TEXT = re.compile(rf"\b((?i:Payment))(\s{{1,8}}){_JSON}{_BASE64URL}{{22,}}={{0,2}}")
# The beginning of a credential, {"challenge": with or without blanks, in base64: also found without the scheme before it.
_TOKEN_IN_TEXT = re.compile(rf"(?:eyJjaGFsbGVuZ2Ui|eyAiY2hhbGxlbmdlI|ewogICJjaGFsbGVuZ2Ui|eyJwYXlsb2FkI){_BASE64URL}+={{0,2}}")
# Servers repeat a preimage that they refuse: Invalid preimage: sha256(…) != …
_PREIMAGE_IN_TEXT = re.compile(r"(preimage[^A-Za-z0-9]{1,12}(?:sha-?256[^A-Za-z0-9]{1,3})?)[0-9a-f]{32,}", re.IGNORECASE)

# A preimage in a credential's JSON, of a session's too.
_PREIMAGE = re.compile(r'[Pp]reimage"\s*:\s*"([0-9a-fA-F]{64})"')
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


def token_of(params: Mapping[str, str]) -> str:
    """Return the text that holds every parameter of a challenge that goes back to the server: sorted JSON.

    It is public. The ledger keeps it, so that a later run can make the credential.
    """
    return _json({name: params[name] for name in ECHOED if name in params})


def authorization(scheme: str, token: str, preimage: bytes) -> str:
    """Return the credential for the challenge whose `token_of` is ``token``; ``preimage`` is 32 bytes.

    Raises: ValueError for arguments that make no credential. Its text holds neither token nor preimage.
    """
    if scheme != SCHEME:
        raise ValueError("the scheme of a credential must be Payment")
    if len(preimage) != PREIMAGE_BYTES:
        raise ValueError(f"a preimage has {PREIMAGE_BYTES} bytes, not {len(preimage)}")
    credential = _credential(_echo_of(token), preimage)
    if len(credential) > MAX_CREDENTIAL_CHARS:
        raise ValueError(f"the credential is above {MAX_CREDENTIAL_CHARS} characters")
    return credential


def is_sendable(token: str) -> bool:
    """Return whether a credential can be made of ``token``: it is the text of `token_of`, all of it Unicode, and not oversized."""
    try:
        authorization(SCHEME, token, bytes(PREIMAGE_BYTES))
    except ValueError:  # UnicodeEncodeError is one
        return False
    return True


def credential_header(token: str) -> str:
    """Return the name of the header that the credential for ``token`` goes into. Raises: ValueError if ``token`` is none."""
    return ALTERNATE_HEADER if "header" in _echo_of(token) else DEFAULT_HEADER


def secrets_of(token: str, preimage: bytes | None) -> frozenset[str]:
    """Return what is secret of a charge: nothing before it is paid for, then its preimage and the credential made of that."""
    if not preimage:
        return frozenset()
    try:
        return secrets_in(_credential(_echo_of(token), preimage)) | {preimage.hex()}
    except ValueError:
        return frozenset((preimage.hex(),))


def secrets_in(value: str) -> frozenset[str]:
    """Return the secrets in ``value`` if the whole of it is a credential: its token, and the preimage in that. Else none."""
    if not is_credential(value):
        return frozenset()
    token = value.split()[1].rstrip("=")
    digits = token.translate(_URL_SAFE_TO_STANDARD)
    try:
        found = _PREIMAGE.findall(base64.b64decode(digits + "=" * (-len(digits) % 4)).decode("latin-1"))
    except ValueError:
        found = []
    return frozenset((token, *(each.lower() for each in found)))


def is_credential(value: str) -> bool:
    """Return whether the whole of ``value`` is a credential, in any case."""
    return _CREDENTIAL.fullmatch(value) is not None


def redact(text: str) -> str:
    """Return ``text`` for a log, with all credentials and preimages replaced."""
    text = _CREDENTIAL_IN_TEXT.sub(r"\1\2<redacted>", text)
    text = _TOKEN_IN_TEXT.sub("<redacted>", text)
    return _PREIMAGE_IN_TEXT.sub(r"\1<redacted>", text)


def _credential(echo: Mapping[str, str], preimage: bytes) -> str:
    text = _json({"challenge": echo, "payload": {"preimage": preimage.hex()}})
    return f"{SCHEME} {base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}"


def _echo_of(token: str) -> dict[str, str]:
    try:
        echo = json.loads(token)
    except (ValueError, RecursionError):
        echo = None
    if not isinstance(echo, dict) or not all(name in ECHOED and isinstance(value, str) for name, value in echo.items()):
        raise ValueError("the token isn't a challenge of the Payment scheme") from None
    return echo


def _json(value: object) -> str:
    """Return JSON that is canonical (RFC 8785) for objects of ASCII names and texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
