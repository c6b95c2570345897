"""Read TLS certificates: from any text or bytes that hold them to their names and dates, with no help of a TLS library.

Pure. A program may replace parts of the ssl module (truststore does), and ssl shows only those certificates that may sign others.
Reads what is needed here, by RFC 5280: issuer and subject, the dates, and the subject's alternative names. What is trusted for what
is left to `channel`.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import ipaddress
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone

#: A bundle of all public authorities has some 250 kB.
BYTES_MAX = 2 * 2**20
_CERTIFICATES_MAX = 1_000

_BLOCK = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL)
# The tags of DER (X.690) that are looked for
_INTEGER, _OCTETS, _SEQUENCE, _UTC_TIME, _TIME = 0x02, 0x04, 0x30, 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate. ``der`` are its bytes. It is for the DNS names ``hosts``, in lower case, and the IP addresses ``addresses``.

    ``is_self_signed``: its issuer and its subject have the same name. The signature isn't checked.
    """

    der: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    hosts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    is_self_signed: bool = False


def read_certificates(source: bytes | str) -> tuple[Certificate, ...]:
    """Return all certificates in ``source``: PEM with any text around it, DER, or base64 or hex of either.

    A byte order mark is skipped, UTF-16 is read, and a private key that stands beside a certificate is left out.

    Raises: ValueError if there is none. Its text ends the sentence "the file …" or "it …", and repeats nothing of ``source``.
    """
    data = plain_bytes(source)
    if not data.strip():
        raise ValueError("is empty")
    found = list(_all_in(data))
    if not found and (inner := _decoded(data)) is not None:
        found = list(_all_in(inner))
    if found:
        return tuple(found)
    if b"PRIVATE KEY-----" in data:
        raise ValueError("holds a private key and no certificate")
    if b"-----BEGIN" in data and b"CERTIFICATE-----" in data:
        raise ValueError("holds a certificate that is cut off or damaged")
    raise ValueError("holds no certificate")


def plain_bytes(source: bytes | bytearray | memoryview | str) -> bytes:
    """Return ``source`` in an encoding that extends ASCII, without a byte order mark."""
    if isinstance(source, str):
        return source.lstrip("\ufeff").encode("utf-8", "surrogatepass")
    source = bytes(source)
    for mark, encoding in ((codecs.BOM_UTF8, None), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if source.startswith(mark):
            rest = source[len(mark) :]
            return rest if encoding is None else rest.decode(encoding, "replace").encode("utf-8", "surrogatepass")
    return source


def pem_of(certificates: Iterable[Certificate]) -> bytes:
    """Return the certificates as PEM, and nothing else: TLS libraries differ in what they take besides."""
    lines = []
    for certificate in certificates:
        text = base64.b64encode(certificate.der).decode()
        body = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        lines.append(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    return "".join(lines).encode()


def name_to_check(certificates: tuple[Certificate, ...], host: str) -> str | None:
    """Return the name to check the node's certificate for in place of ``host``; None if ``host`` itself is to be checked.

    Another name is returned if the pinned certificate is the node's own but doesn't name ``host``:

    - A self-signed certificate that names hosts is a server's own. A server that answers with it holds its key, whatever name it is
      reached by (a forwarded port, a container's alias). The pin is what protects here, so any name in the certificate will do.
    - A true certificate authority names no hosts, and a chain has several certificates. With these ``host`` is checked as usual.
    """
    if len(certificates) != 1 or not certificates[0].is_self_signed:
        return None
    (certificate,) = certificates
    names = [name for name in certificate.hosts if "*" not in name]
    if host.lower() in names or _address(host) in certificate.addresses:
        return None
    return "localhost" if "localhost" in names else next(iter(names), None)


def _address(text: str) -> str:
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return text


def _all_in(data: bytes) -> Iterator[Certificate]:
    blocks = [match[1] for match in _BLOCK.finditer(data)][:_CERTIFICATES_MAX]
    for block in blocks:
        # A block of old tools has header lines, which end with an empty one.
        body = re.split(rb"\r?\n\r?\n", block.strip())[-1] if b":" in block else block
        with suppress(ValueError, binascii.Error):
            content = base64.b64decode(b"".join(body.split()), validate=True)
            # An lndconnect URI may hold the base64 of the PEM where that of the DER belongs.
            yield from [read_der(content)] if b"-----BEGIN" not in content else list(_all_in(content))
    if not blocks and data[:1] == bytes([_SEQUENCE]):
        with suppress(ValueError):
            yield read_der(data)


def _decoded(data: bytes) -> bytes | None:
    """Return what ``data`` stands for if it is base64 (of either alphabet) or hex, else None."""
    text = b"".join(data.split())
    with suppress(ValueError):
        return bytes.fromhex(text.decode("ascii"))
    with suppress(ValueError, binascii.Error):
        text = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    return None


def read_der(data: bytes) -> Certificate:
    """Return the certificate at the start of ``data``; what comes after it is left out. Raises: ValueError if there is none."""
    try:
        return _read_der(data)
    except (IndexError, ValueError, UnicodeError, OverflowError):
        raise ValueError("holds a certificate that is cut off or damaged") from None


def _read_der(data: bytes) -> Certificate:
    tag, content, end = _element(data, 0)
    to_be_signed, signature_algorithm, _ = _elements(content, 3)
    if tag != _SEQUENCE or to_be_signed[0] != _SEQUENCE or signature_algorithm[0] != _SEQUENCE:
        raise ValueError("no certificate")
    fields = list(_elements(to_be_signed[1]))
    if fields[0][0] == _VERSION:
        fields = fields[1:]
    (serial, _), _, issuer, (_, validity), subject, (key, _) = fields[:6]
    if (serial, key) != (_INTEGER, _SEQUENCE):
        raise ValueError("no certificate")
    not_before, not_after = (_moment(*each) for each in _elements(validity, 2))
    extensions = next((content for tag, content in fields[6:] if tag == _EXTENSIONS), b"")
    names = list(_alternative_names(extensions))
    return Certificate(
        der=data[:end],
        not_before=not_before,
        not_after=not_after,
        hosts=tuple(value.decode("ascii", "replace").lower() for tag, value in names if tag == _DNS_NAME),
        addresses=tuple(str(ipaddress.ip_address(value)) for tag, value in names if tag == _IP_ADDRESS and len(value) in (4, 16)),
        is_self_signed=issuer == subject,
    )


def _alternative_names(extensions: bytes) -> Iterator[tuple[int, bytes]]:
    if not extensions:
        return
    for _, extension in _elements(_element(extensions, 0)[1]):
        if extension.startswith(_SUBJECT_ALT_NAME):
            for tag, value in _elements(extension):
                if tag == _OCTETS:
                    yield from _elements(_element(value, 0)[1])


def _elements(data: bytes, count: int | None = None) -> list[tuple[int, bytes]]:
    """Return tag and content of each element in ``data``. Raises: ValueError if there aren't ``count`` of them."""
    found, at = [], 0
    while at < len(data):
        tag, content, at = _element(data, at)
        found.append((tag, content))
    if count not in (None, len(found)):
        raise ValueError("not so many elements")
    return found


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return tag, content and end of the element at ``at``. Raises: ValueError or IndexError if ``data`` ends before it does."""
    tag, size = data[at], data[at + 1]
    at += 2
    if size & 0x80:
        width = size & 0x7F
        size = int.from_bytes(data[at : at + width], "big")
        if not 0 < width <= 4:
            raise ValueError("no length")
        at += width
    if at + size > len(data):
        raise ValueError("cut off")
    return tag, data[at : at + size], at + size


def _moment(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text  # RFC 5280, 4.1.2.5.1
    elif tag != _TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
