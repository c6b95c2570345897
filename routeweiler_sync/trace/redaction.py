"""Leave secrets and private data out of an event's JSON, as the sink's ``redact`` and ``url_mode`` say. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_Change = Callable[[str], "str | None"]

#: URLs in free text, and the paths that urllib3 names in its messages ("… with url: /path").
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+|(?<=url: )/[^\s'\"]*")
_QUERY = re.compile(r"[?#].*", re.DOTALL)


def redacted(payload: dict[str, Any], *, redact: bool, drop_urls: bool) -> dict[str, Any]:
    """Return ``payload`` (the result of `TraceEvent.to_json_dict`) without what the sink must not write.

    ``redact`` removes the preimage, the query strings and fragments of URLs, and texts from elsewhere (the error's message, the
    invoice's description). Amounts, hashes, hosts, paths and error codes stay. ``drop_urls`` removes every URL, also inside texts,
    and a scope that is a path.
    """
    if redact:
        payload = _changed(payload, url=_without_query, text=lambda _: None)
        if payload["payment"] is not None:
            payload["payment"] = {**payload["payment"], "proofValue": None}
    if drop_urls:
        payload = _changed(payload, url=lambda _: None, text=lambda text: _URL_IN_TEXT.sub("<url>", text))
        if payload["challenge"] is not None and (payload["challenge"]["scope"] or "").startswith("/"):
            payload["challenge"]["scope"] = None
    return payload


def redacted_url(url: str, *, redact: bool, drop_urls: bool) -> str | None:
    """Return what `redacted` leaves of a call's ``url``."""
    if drop_urls:
        return None
    return _without_query(url) if redact else url


def without_queries(text: str) -> str:
    """Return ``text``, an error's for instance, without the query strings and fragments of the URLs in it."""
    return _URL_IN_TEXT.sub(lambda found: _without_query(found[0]), text)


def _without_query(url: str) -> str:
    return _QUERY.sub("", url)


def _changed(payload: dict[str, Any], *, url: _Change, text: _Change) -> dict[str, Any]:
    """Return ``payload`` with ``url`` applied to its URLs, and ``text`` to the error's message and the invoice's description."""

    def apply(change: _Change, value: str | None) -> str | None:
        return None if value is None else change(value)

    payload = {**payload, "url": apply(url, payload["url"])}
    challenge, error = payload["challenge"], payload["outcome"]["error"]
    if challenge is not None:
        payload["challenge"] = {
            **challenge,
            "url": apply(url, challenge["url"]),
            "description": apply(text, challenge["description"]),
        }
    if error is not None:
        payload["outcome"] = {**payload["outcome"], "error": {**error, "message": apply(text, error["message"])}}
    return payload
