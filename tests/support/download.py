"""A page that can be downloaded in parts, and breaks off: what a `Paywall` answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate

from routeweiler_sync.testing.paywall import PaywallRequest

CHANGED = formatdate(1_700_000_000, usegmt=True)


class CutShort(bytes):
    """A body that says that it has ``said`` bytes, and has fewer."""

    said = 0

    def __len__(self) -> int:
        return self.said


def cut_short(body: bytes, at: int) -> bytes:
    """``body``, of which only the first ``at`` bytes are sent."""
    made = CutShort(body[:at])
    made.said = len(body)
    return made


class Download:
    """A page of one version. It answers requests for a part of it as RFC 9110 has it.

    ``breaks_at``: the next answer ends after so many bytes of its body, None: it is whole. ``stalls``: it doesn't end then, but
    nothing more comes. ``knows``: what the server understands, of "ranges" and "if-range".
    """

    def __init__(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.content = content
        self.headers = dict({"ETag": '"one"'} if headers is None else headers)
        self.breaks_at: int | None = None
        self.stalls = False
        self.knows = {"ranges", "if-range"}

    def respond(self, request: PaywallRequest) -> tuple[int, Mapping[str, str], bytes]:
        headers = dict(self.headers)
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        wanted = request.headers.get("If-Range")
        holds = wanted is None or "if-range" not in self.knows or wanted in (headers.get("ETag"), headers.get("Last-Modified"))
        status, body = 200, self.content
        if asked is not None and "ranges" in self.knows and holds:
            begin, length = int(asked[1]), len(self.content)
            if begin >= length:
                return 416, {**headers, "Content-Range": f"bytes */{length}"}, b""
            status, body = 206, self.content[begin:]
            headers["Content-Range"] = f"bytes {begin}-{length - 1}/{length}"
        if self.breaks_at is not None:
            body, self.breaks_at = cut_short(body, self.breaks_at), None
            if not self.stalls:
                headers["Connection"] = "close"
        return status, headers, body
