"""What a trace may leave out: pure functions from an event's JSON to less of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_Change = Callable[[str], "str | None"]

#: URLs in free text, and the paths that urllib3 names in its messages ("… with url: /path").
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+|(?<=url: )/[^\s'\"]*")
_QUERY = re.compile(r"[?#].*", re.DOTALL)


def redacted(payload: dict[str, Any], *, redact: bool, drop_urls: bool) -> dict[str, Any]:
    """``payload`` (as `TraceEvent.to_json_dict` gives it) less what the sink is not to write.

    ``redact`` takes out the preimages, query strings and fragments of URLs, and texts that others wrote (the error's message,
    the invoice's description): sums, hashes, hosts, paths and error codes stay. ``drop_urls`` takes out every URL, also from
    texts, and a scope that is a path.
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


def _without_query(url: str) -> str:
    return _QUERY.sub("", url)


def _changed(payload: dict[str, Any], *, url: _Change, text: _Change) -> dict[str, Any]:
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
