"""One request to a wallet over an open `Link`: subscribe to its answer, publish it, wait (NIP-01, NIP-42, NIP-47).

Knows the messages between client and relay. Which request is made over which relay is left to `relays` and `order`, what an
answer means to `replies`. The answer is subscribed to before the request is published, because relays don't keep answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ..._core.deadline import monotonic_s
from ..._core.secret_text import without_secrets
from ..replies import tidy
from .events import Keyring, Request, WalletNotes
from .link import Link, LinkError
from .replies import never_arrived

#: How long a relay may take to say that a subscription has begun, in seconds. One that never says so is used all the same.
SUBSCRIBE_S_MAX = 5.0
#: The first characters of an event's id name the subscription to its answer.
_NAME_CHARS = 32


class RelayRefusedError(Exception):
    """A relay has refused a subscription or an event. ``never_arrived``: that proves that the event has reached nobody."""

    def __init__(self, reason: str, *, never_arrived: bool) -> None:
        super().__init__(reason)
        self.reason, self.never_arrived = reason, never_arrived


class NoAnswerError(Exception):
    """The request was published, and no answer came in time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def wallet_notes(link: Link, keyring: Keyring, deadline: float) -> WalletNotes:
    """Return what the wallet's info event says. It is asked for once a connection; a relay that has none is no fault.

    Raises: LinkError. RelayRefusedError.
    """
    if isinstance(known := link.notes.get("wallet"), WalletNotes):
        return known
    found = WalletNotes()

    def take(event: object) -> None:
        nonlocal found
        notes = keyring.notes(event)
        if notes is not None and notes.created_at > found.created_at:
            found = notes

    has_ended = _subscribe(link, keyring, "info", keyring.info_filter(), deadline, take)
    _say(link, deadline, "CLOSE", "info")
    if found.found or has_ended:
        link.notes["wallet"] = found
    return found


def ask(link: Link, keyring: Keyring, request: Request, deadline: float) -> dict[str, Any]:
    """Publish ``request`` once, and return the wallet's answer to it. Raises: as `publish` and `answer_to`."""
    publish(link, keyring, request, deadline)
    try:
        return answer_to(link, keyring, request, deadline)
    finally:
        leave(link, request, deadline)


def publish(
    link: Link, keyring: Keyring, request: Request, deadline: float, *, before_sending: Callable[[], None] | None = None
) -> None:
    """Subscribe to the answer to ``request``, and publish it once.

    ``before_sending`` is called last of all before the request leaves, and may forbid it by an exception.

    Raises: LinkError, whose ``sent`` tells whether any of the request has left. RelayRefusedError.
    """
    try:
        _subscribe(link, keyring, _name_of(request), keyring.response_filter(request), deadline)
    except LinkError as error:
        raise LinkError(error.reason) from None
    except RelayRefusedError as error:
        raise RelayRefusedError(error.reason, never_arrived=True) from None  # the request has not been published
    link.asked[_name_of(request)] = request
    if before_sending is not None:
        before_sending()
    link.send(f'["EVENT",{request.text}]', deadline)


def answer_to(link: Link, keyring: Keyring, request: Request, deadline: float) -> dict[str, Any]:
    """Wait for the wallet's answer to a published ``request``. May be called again, and after other requests over this link.

    Raises: LinkError with ``sent``. RelayRefusedError. NoAnswerError.
    """
    name, accepted = _name_of(request), False
    try:
        while name not in link.answers and (message := _next(link, keyring, deadline)) is not None:
            match message:
                case ["EVENT", str(to), event, *_]:
                    _file(link, keyring, to, event)
                case ["OK", str(about), bool(is_taken), *more] if about == request.id:
                    accepted = accepted or is_taken
                    if not accepted:
                        text = more[0] if more and isinstance(more[0], str) else ""
                        raise RelayRefusedError(_told(link, "refuses the request", text), never_arrived=never_arrived(text))
                case ["CLOSED", str(to), *more] if to == name:
                    raise LinkError(_told(link, "has ended the subscription", more[0] if more else ""))
    except LinkError as error:
        raise LinkError(error.reason, sent=True) from None
    if name in link.answers:
        return link.answers[name]
    how = "has passed the request on" if accepted else "hasn't confirmed the request"
    raise NoAnswerError(f"no answer of the wallet in time ({link.place} {how})")


def leave(link: Link, request: Request, deadline: float) -> None:
    """Wait for no answer to ``request`` any more."""
    name = _name_of(request)
    link.asked.pop(name, None)
    link.answers.pop(name, None)
    _say(link, deadline, "CLOSE", name)


def _name_of(request: Request) -> str:
    """Return the name of the subscription to the answer."""
    return request.id[:_NAME_CHARS]


def _subscribe(
    link: Link,
    keyring: Keyring,
    name: str,
    wanted: dict[str, Any],
    deadline: float,
    take: Callable[[object], None] = lambda event: None,
) -> bool:
    """Subscribe to what ``wanted`` fits. Return whether the relay has said that all it keeps was sent; ``take`` has seen that.

    Raises: LinkError. RelayRefusedError.
    """
    deadline = min(deadline, monotonic_s() + SUBSCRIBE_S_MAX)
    link.send(json.dumps(["REQ", name, wanted], separators=(",", ":")), deadline)
    is_second = False
    while (message := _next(link, keyring, deadline)) is not None:
        match message:
            case ["EVENT", str(to), event, *_] if to == name:
                take(event)
            case ["EVENT", str(to), event, *_]:
                _file(link, keyring, to, event)
            case ["EOSE", str(to), *_] if to == name:
                return True
            case ["CLOSED", str(to), *more] if to == name:
                text = more[0] if more and isinstance(more[0], str) else ""
                if not text.startswith("auth-required") or is_second or "challenge" not in link.notes:
                    raise RelayRefusedError(_told(link, "refuses the subscription", text), never_arrived=True)
                is_second = True  # by now it knows who this client is: messages are answered in order
                link.send(json.dumps(["REQ", name, wanted], separators=(",", ":")), deadline)
    return False


def _file(link: Link, keyring: Keyring, to: str, event: object) -> None:
    """Keep ``event`` if it is the wallet's answer to a request that is waited for. It may come while another one is begun."""
    asked = link.asked.get(to)
    if asked is not None and (response := keyring.response(event, asked)) is not None:
        link.answers.setdefault(to, response)


def _next(link: Link, keyring: Keyring, deadline: float) -> list[Any] | None:
    """Return the relay's next message, or None if none comes in time. A relay that asks who this client is gets its answer."""
    while (text := link.receive(deadline)) is not None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(message, list) or not message:
            continue
        if message[0] == "AUTH" and len(message) > 1 and isinstance(message[1], str):
            challenge = message[1].encode("utf-8", "replace").decode()  # JSON can hold half of a surrogate pair
            link.notes["challenge"] = challenge
            link.send(f'["AUTH",{keyring.authentication(link.url, challenge)}]', deadline)
            continue
        return message
    return None


def _say(link: Link, deadline: float, *message: str) -> None:
    try:
        link.send(json.dumps(message), deadline)
    except LinkError:
        link.abandon()  # told by the next use


def _told(link: Link, what: str, text: object) -> str:
    said = tidy(without_secrets(text)) if isinstance(text, str) else ""
    return f"{link.place} {what}: {said}" if said else f"{link.place} {what}"
