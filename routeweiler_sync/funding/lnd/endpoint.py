"""A node's address and the credentials that open it: `Endpoint`, and `Credentials`, which reads their files again when they change.

Knows the forms that macaroon and certificate come in. What a certificate says is left to `certificates`, who opens the connection
to `channel`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._core.secret_text import without_secrets
from ...errors import FundingError
from ..http_url import WalletUrl
from ..replies import tidy
from .certificates import BYTES_MAX as CERTIFICATE_BYTES_MAX, Certificate, plain_bytes, read_certificates

#: A macaroon has some hundred bytes. A file larger than this is something else.
_MACAROON_BYTES_MAX = 16_384
#: How macaroons begin, by libmacaroons' formats: version 2, version 2 in JSON, and version 1 (length in hex, field's name).
_MACAROON_START = re.compile(rb"\x02|\{|[0-9a-f]{4}(location|identifier) ")

#: How the caveat begins that binds a macaroon to an account (litd, accounts/interceptor.go).
_ACCOUNT_CAVEAT = b"lnd-custom account "


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A node's address, and the credentials that open it.

    One of the ``macaroon_…`` fields is set; neither is in an unpickled client whose macaroon was given inline. At most one of the
    ``tls_cert_…`` fields is set; with neither, gRPC's default roots are trusted, or for REST those of the system.

    ``rest_url`` is the node's REST interface, whose host and port are the fields of that name; None for gRPC.
    """

    host: str
    port: int
    macaroon_path: str | None = None
    macaroon_hex: str | None = field(default=None, repr=False)
    tls_cert_path: str | None = None
    tls_cert_pem: str | bytes | None = field(default=None, repr=False)
    rest_url: WalletUrl | None = None

    @property
    def address(self) -> str:
        """``host:port``, with an IPv6 address in brackets; for REST the URL."""
        if self.rest_url is not None:
            return str(self.rest_url)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def what(self, cause: str) -> str:
        """Return ``cause`` as the first sentence of an error, with the node's address."""
        return f"lnd at {tidy(self.address)}: {cause}"

    def error(self, cause: str, advice: str) -> FundingError:
        """Return the error for a connection that ``cause`` prevents. ``advice`` begins with a small letter and has no full stop."""
        return FundingError(self.what(cause), advice=f"{advice[0].upper()}{advice[1:]}.")


class Credentials:
    """The macaroon and the pinned certificates of one endpoint. A file is read anew each time that its content is asked for.

    A job that renews a file may write it in place, and for a moment it is empty or cut off then. What was read before it serves
    until it can be read again. Safe to share between threads and forks.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._macaroon_hex: str | None = None
        self._certificates: tuple[Certificate, ...] | None = None
        # Paths of files that can be read once only, such as a pipe (`<(command)` of a shell).
        self._once: set[str] = set()

    def macaroon_hex(self) -> str:
        """Return the macaroon in hex, as lnd wants it. Raises: FundingError if there is none."""
        endpoint = self._endpoint
        if endpoint.macaroon_hex is not None:
            return endpoint.macaroon_hex
        if endpoint.macaroon_path is None:
            raise endpoint.error(
                "its macaroon was given inline, and such a macaroon isn't pickled",
                "give macaroon_path, or construct the client again in this process",
            )
        if endpoint.macaroon_path in self._once and self._macaroon_hex is not None:
            return self._macaroon_hex
        try:
            macaroon = read_macaroon(self._read(endpoint.macaroon_path, "macaroon", _MACAROON_BYTES_MAX + 1))
        except ValueError as error:
            if self._macaroon_hex is None:
                raise endpoint.error(f"{shown(endpoint.macaroon_path)} {error}", "give lnd's binary *.macaroon file") from None
        except FundingError:
            if self._macaroon_hex is None:
                raise
        else:
            if self._macaroon_hex is None or not _is_cut_off(macaroon):
                self._macaroon_hex = macaroon.hex()
        return self._macaroon_hex

    def is_of_account(self) -> bool:
        """Return whether the macaroon is that of an account of litd, by its caveat. False if it can't be read."""
        with suppress(ValueError, FundingError):
            return _ACCOUNT_CAVEAT in bytes.fromhex(self.macaroon_hex())
        return False

    def certificates(self) -> tuple[Certificate, ...] | None:
        """Return the pinned certificates; None if none is pinned. Raises: FundingError if they can't be read."""
        endpoint = self._endpoint
        path, pem = endpoint.tls_cert_path, endpoint.tls_cert_pem
        if path is None:
            if pem is None:
                return None
            try:
                return read_certificates(pem)
            except ValueError as error:
                raise endpoint.error(
                    f"the TLS certificate that was given can't be used: it {error}", "give the PEM of lnd's tls.cert"
                ) from None
        if path in self._once and self._certificates is not None:
            return self._certificates
        try:
            self._certificates = read_certificates(self._read(path, "TLS certificate", CERTIFICATE_BYTES_MAX))
        except ValueError as error:
            if self._certificates is None:
                raise endpoint.error(f"the TLS certificate file {shown(path)} {error}", "give lnd's tls.cert") from None
        except FundingError:
            if self._certificates is None:
                raise
        return self._certificates

    def without_secrets(self, text: str) -> str:
        """Return ``text`` without the macaroon: a server may repeat what it was sent, and the text may be logged."""
        for secret in {self._endpoint.macaroon_hex, self._macaroon_hex} - {None}:
            assert secret is not None
            text = re.sub(re.escape(secret), "<macaroon>", text, flags=re.IGNORECASE)
            with suppress(ValueError):
                for encode in (base64.b64encode, base64.urlsafe_b64encode):
                    text = text.replace(encode(bytes.fromhex(secret)).decode().rstrip("="), "<macaroon>")
        return text

    def _read(self, path: str, what: str, bytes_max: int) -> bytes:
        """Return the first ``bytes_max`` bytes of a file. Raises: FundingError if it can't be read."""
        try:
            with Path(os.fsdecode(path)).expanduser().open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    self._once.add(path)
                return file.read(bytes_max)
        # RuntimeError: a ~user that doesn't exist. ValueError: a NUL, or characters that no file name can have.
        except (OSError, RuntimeError, ValueError) as error:
            cause = getattr(error, "strerror", None) or ("no file can have this name" if isinstance(error, ValueError) else error)
            raise self._endpoint.error(
                f"the {what} file {shown(path)} can't be read ({cause})", "check its path and its permissions"
            ) from None


def read_macaroon(data: bytes) -> bytes:
    """Return the binary macaroon in a file's content, which may be the hex or base64 text of it.

    Raises: ValueError if it is none. Its text ends the sentence "the file …".
    """
    if not 0 < len(data) <= _MACAROON_BYTES_MAX:
        raise ValueError("holds no macaroon: it is empty" if not data else "holds no macaroon: it is too large")
    if _MACAROON_START.match(data):
        return data
    text = b"".join(plain_bytes(data).split()).strip(b"\"'")
    if not text:
        raise ValueError("holds no macaroon: it is empty")
    if b"-----BEGIN" in text:
        raise ValueError("holds no macaroon: it is a certificate or a key")
    with suppress(ValueError):
        return bytes.fromhex(text.decode("ascii"))
    with suppress(ValueError, binascii.Error):
        bare = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        decoded = base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
        if _MACAROON_START.match(decoded):
            return decoded
    return data


def shown(path: Any) -> str:
    """Return a path in a form fit for an error text: one line, without what may be a secret."""
    return tidy(without_secrets(os.fsdecode(path)))


def _is_cut_off(macaroon: bytes) -> bool:
    """Return whether a macaroon of version 2 doesn't end with its signature: a field of type 6 with 32 bytes."""
    return macaroon.startswith(b"\x02") and macaroon[-34:-32] != b"\x06\x20"
