"""The events of NIP-47: requests that are signed and encrypted, and responses that are checked before they are believed.

Keys, signatures and encryption are left to nostr-sdk. Its functions are called in worker threads alone (an interrupt in one of its
callbacks would be lost), and only those that call nothing back. What a response means is left to `replies`.

An event that anybody else has made is no answer: a relay, or whoever can write to one, may send what he likes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from .library import nostr

INFO, REQUEST, RESPONSE, AUTH = 13194, 23194, 23195, 22242
NIP44 = "nip44_v2"
#: A longer content of a response isn't read.
_CONTENT_CHARS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A signed request: its event's id, 64 hex digits, and the text of the event. ``method`` is NIP-47's."""

    id: str
    method: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletNotes:
    """What a wallet's info event says: its methods, and whether it reads NIP-44. Without such an event, it reads NIP-04 alone."""

    methods: frozenset[str] = frozenset()
    nip44: bool = False
    found: bool = False
    created_at: int = -1


class Keyring:
    """This client's private key and the wallet's public one. Both are 64 hex digits."""

    def __init__(self, secret: str, wallet_key: str) -> None:
        sdk = nostr()
        self._keys = sdk.Keys.parse(secret)
        self._secret = self._keys.secret_key()
        self._own = self._keys.public_key()
        self._wallet = sdk.PublicKey.parse(wallet_key)
        self.own_key: str = self._own.to_hex()
        self.wallet_key = wallet_key

    def request(self, method: str, params: dict[str, Any], *, nip44: bool, lives_s: float) -> Request:
        """Return a new request of ``method``. It expires in ``lives_s`` seconds (NIP-40), rounded up."""
        sdk = nostr()
        now = int(time.time())
        text = json.dumps({"method": method, "params": params}, separators=(",", ":"))
        if nip44:
            content = sdk.nip44_encrypt(self._secret, self._wallet, text, sdk.Nip44Version.V2)
        else:
            content = sdk.nip04_encrypt(self._secret, self._wallet, text)
        tags = [["p", self.wallet_key], ["expiration", str(now + int(lives_s) + 1)]]
        if nip44:
            tags.append(["encryption", NIP44])
        event = self._signed(REQUEST, content, tags, now)
        return Request(id=event.id().to_hex(), method=method, text=event.as_json())

    def authentication(self, relay: str, challenge: str) -> str:
        """Return the text of the event by which this client says to a relay who it is (NIP-42)."""
        text: str = self._signed(AUTH, "", [["relay", relay], ["challenge", challenge]], int(time.time())).as_json()
        return text

    def _signed(self, kind: int, content: str, tags: list[list[str]], now: int) -> Any:
        sdk = nostr()
        builder = sdk.EventBuilder(sdk.Kind(kind), content).tags([sdk.Tag.parse(tag) for tag in tags])
        unsigned = builder.custom_created_at(sdk.Timestamp.from_secs(now)).finalize_unsigned(self._own)
        return self._keys.sign_event(unsigned)

    def response(self, event: object, request: Request) -> dict[str, Any] | None:
        """Return what the wallet answers to ``request`` in ``event``; None if ``event`` isn't the wallet's answer to it.

        It is the answer if the wallet has signed it, and it names this request and this client.
        """
        if not isinstance(event, dict) or event.get("kind") != RESPONSE or event.get("pubkey") != self.wallet_key:
            return None
        tags = _tags(event)
        if request.id not in tags.get("e", ()) or self.own_key not in tags.get("p", ()) or not _is_signed(event):
            return None
        content = event.get("content")
        if not isinstance(content, str) or len(content) > _CONTENT_CHARS_MAX:
            return None
        try:
            said = json.loads(self._open(content))
        except Exception:  # noqa: BLE001 - the wallet's own event, and yet nothing that can be read
            return None
        if not isinstance(said, dict) or said.get("result_type") not in (request.method, None, ""):
            return None
        return said

    def notes(self, event: object) -> WalletNotes | None:
        """Return what the wallet's info event says; None if ``event`` isn't one."""
        if not isinstance(event, dict) or event.get("kind") != INFO or event.get("pubkey") != self.wallet_key:
            return None
        if not _is_signed(event):
            return None
        content, created_at = event.get("content"), event.get("created_at")
        methods = content.replace(",", " ").split() if isinstance(content, str) else []
        ways = " ".join(_tags(event).get("encryption", [])).replace(",", " ").split()
        return WalletNotes(
            methods=frozenset(methods),
            nip44=NIP44 in ways,
            found=True,
            created_at=created_at if isinstance(created_at, int) else 0,
        )

    def response_filter(self, request: Request) -> dict[str, Any]:
        """Return the filter that asks a relay for the answer to ``request``."""
        return {"kinds": [RESPONSE], "authors": [self.wallet_key], "#e": [request.id]}

    def info_filter(self) -> dict[str, Any]:
        """Return the filter that asks a relay for the wallet's info event."""
        return {"kinds": [INFO], "authors": [self.wallet_key], "limit": 1}

    def _open(self, content: str) -> str:
        """Return the text in ``content``, which NIP-04 marks by its ``?iv=``."""
        sdk = nostr()
        if "?iv=" in content:
            text: str = sdk.nip04_decrypt(self._secret, self._wallet, content)
        else:
            text = sdk.nip44_decrypt(self._secret, self._wallet, content)
        return text


def _tags(event: dict[str, Any]) -> dict[str, list[str]]:
    """Return the values of an event's tags, all tags of one name together."""
    found: dict[str, list[str]] = {}
    tags = event.get("tags")
    for tag in tags if isinstance(tags, list) else []:
        if isinstance(tag, list) and len(tag) > 1 and all(isinstance(each, str) for each in tag[:2]):
            found.setdefault(tag[0], []).append(tag[1])
    return found


def _is_signed(event: dict[str, Any]) -> bool:
    """Return whether the event's id is that of its content, and its signature that of its author."""
    try:
        return bool(nostr().Event.from_json(json.dumps(event)).verify())
    except Exception:  # noqa: BLE001 - nostr-sdk has one class of errors for all that an event can lack
        return False
