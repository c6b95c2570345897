"""The event of a free call as text at once: most calls are free, and an event's objects cost more than all else of its line.

What an event contains is decided in `schema` and, for a call, in `paywall.call_record`. This text is the same, character for
character, as their event written by `TraceSink.emit`. An event that isn't plain is left to them.
"""

from __future__ import annotations

from datetime import datetime, timezone
from json.encoder import encode_basestring_ascii as _quoted
from typing import Protocol

from .schema import timestamp

#: The last whole second that was written, in unix seconds, and its text up to the seconds.
_second: tuple[int, str] = (0, "1970-01-01T00:00:00")


class Labels(Protocol):
    """What an event says of whose call it is. Each is a text or None."""

    agent_id: str | None
    session_id: str | None

    @property
    def envelope_id(self) -> str | None:
        """The id of the envelope in force."""

    @property
    def policy_hash(self) -> str | None:
        """The hash of the policy in force."""


def free_call_text(
    request_id: str, labels: Labels, method: str, url: str | None, http_status: int, *, started_s: float, ended_s: float
) -> str:
    """Return the JSON of the event of a call that met no challenge, used no token, and ended with a response.

    ``url`` is what is to be written of the URL; None for nothing. Times are in unix seconds.

    Raises: TypeError for values that aren't plain.
    """
    if type(http_status) is not int:
        raise TypeError("http_status must be an int")
    agent, session, envelope, policy = labels.agent_id, labels.session_id, labels.envelope_id, labels.policy_hash
    return (
        f'{{"requestId":"{request_id}","agentId":{"null" if agent is None else _quoted(agent)}'
        f',"sessionId":{"null" if session is None else _quoted(session)}'
        f',"envelopeId":{"null" if envelope is None else _quoted(envelope)}'
        f',"policyHash":{"null" if policy is None else _quoted(policy)},"url":{"null" if url is None else _quoted(url)}'
        f',"method":{_quoted(method)},"challenge":null,"selectedRail":null,"fundingSource":null,"payment":null'
        f',"outcome":{{"httpStatus":{http_status},"serviceDelivered":{"true" if http_status < 400 else "false"}'
        f',"serviceLatencyMs":{int((ended_s - started_s) * 1000)},"error":null}}'
        f',"timestampStart":"{_timestamp(started_s)}","timestampEnd":"{_timestamp(ended_s)}"}}'
    )


def _timestamp(moment_s: float) -> str:
    """Return what `schema.timestamp` makes of a time in unix seconds."""
    global _second
    second = int(moment_s)
    micros = round((moment_s - second) * 1e6)  # as datetime.fromtimestamp rounds
    if not 0 <= micros < 1_000_000:
        return timestamp(datetime.fromtimestamp(moment_s, tz=timezone.utc))
    known, text = _second
    if second != known:
        text = datetime.fromtimestamp(second, tz=timezone.utc).isoformat()[:19]
        _second = (second, text)
    return f"{text}.{micros:06d}Z"
