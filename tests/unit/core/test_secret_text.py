"""What may be a secret is left out of a text; what is a path, a name or an id is shown."""

from __future__ import annotations

import base64
import pickle
import random

import pytest

from routeweiler_sync._core.secret_text import is_misplaced, kind_of, may_be_secret, shown, without_secrets

RANDOM = random.Random(7)
SECRETS = [RANDOM.randbytes(size) for size in (32, 33, 48, 64, 100, 250) for _ in range(50)]
LND_MACAROON = b"\x02\x01\x03lnd\x02" + SECRETS[-1]
FORMS = {
    "hex": bytes.hex,
    "HEX": lambda raw: raw.hex().upper(),
    "0x": lambda raw: "0x" + raw.hex(),
    "hex in pairs": lambda raw: raw.hex(" "),
    "hex with colons": lambda raw: raw.hex(":"),
    "hex in lines": lambda raw: "\n".join(raw.hex()[i : i + 40] for i in range(0, len(raw.hex()), 40)),
    "base64": lambda raw: base64.b64encode(raw).decode(),
    "base64url": lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="),
    "base32": lambda raw: base64.b32encode(raw).decode(),
    "quoted": lambda raw: f"'{raw.hex()}'",
    "in a sentence": lambda raw: f"No such file: {raw.hex()}, errno 2",
    "with its name": lambda raw: f"macaroon={base64.b64encode(raw).decode()}",
    "as a port": lambda raw: f"localhost:{raw.hex()}",
    "as a path": lambda raw: f"/home/joe/{raw.hex()}",
    "percent-encoded": lambda raw: "".join(f"%{each:02x}" for each in raw.hex().encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_may_be_a_secret_is_not_shown(form: str) -> None:
    """One macaroon in one log is a wallet in that log."""
    for raw in [*SECRETS, LND_MACAROON]:
        text = FORMS[form](raw)
        assert may_be_secret(text), text
        for part in (raw.hex()[:20], base64.b64encode(raw).decode()[:20]):
            assert part not in shown(text)
            if form not in ("percent-encoded", "hex in lines"):
                assert part not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "/home/joe/.lnd/data/chain/bitcoin/mainnet/admin.macaroon",
        "/Users/Joe1/Library/Application Support/Lnd/tls.cert",
        "C:\\Users\\Joe\\AppData\\Local\\Lnd\\tls.cert",
        "/tmp/pytest-of-joe/pytest-12/test_the_Macaroon_is_in_no_repr_and_no_pickle0/ledger.db",
        "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1/bin",
        "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/x",
        "/mnt/PaymentStuff/Production2024/PaymentLedgers/EuropeWest1/ledger",
        "MyVeryLongLedgerFileNameForTheProductionServer2024",
        "550e8400-e29b-41d4-a716-446655440000",
        "d41d8cd98f00b204e9800998ecf8427e",
        "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS",
        "node.example.com:10009",
        "vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd.onion:10009",
        "postgresql://joe@db.example.com/ledger?sslmode=require",
        "1000 sat/call, 50000 sat/day",
        "",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    """An error that doesn't name the file sends the user to the source code."""
    assert not may_be_secret(text)
    assert shown(text) == repr(text)
    assert without_secrets(text) == text
    assert not is_misplaced(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://joe:pa55@db/ledger", "postgresql://…@db/ledger"),
        ("postgresql://joe:p@ss/word@db/ledger", "postgresql://…@db/ledger"),
        ("https://db/?password=pa55&x=1", "https://db/?password=…&x=1"),
        ("host=db password='pa55 word' dbname=x", "host=db password=… dbname=x"),
        ("host=db sslpassword = pa55 dbname=x", "host=db sslpassword = … dbname=x"),
    ],
)
def test_passwords_are_left_out(text: str, left: str) -> None:
    """They are shorter than any macaroon."""
    assert without_secrets(text) == left
    assert "pa55" not in shown(text)
    assert may_be_secret(text)


def test_a_text_that_is_known_to_be_no_secret_is_kept() -> None:
    """A payment hash has the form of a secret, and an error has to name it."""
    payment_hash = SECRETS[0].hex()
    assert without_secrets(f"no {payment_hash} here", [payment_hash]) == f"no {payment_hash} here"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (LND_MACAROON.hex(), "a macaroon"),
        (LND_MACAROON.hex().upper(), "a macaroon"),
        (base64.b64encode(LND_MACAROON).decode(), "a macaroon"),
        (LND_MACAROON, "a macaroon"),
        (LND_MACAROON.decode("latin-1"), "a macaroon"),
        ("lndconnect://h:1?macaroon=AgE", "an lndconnect URI"),
        ("-----BEGIN CERTIFICATE-----\nMII\n", "a certificate"),
        ("-----BEGIN EC PRIVATE KEY-----\nMII\n", "a private key"),
    ],
)
def test_a_misplaced_secret_is_recognized(text: str | bytes, kind: str) -> None:
    """The error says where it belongs."""
    assert kind_of(text) == kind
    assert is_misplaced(text)
    assert "MII" not in shown(text)
    assert "AgE" not in shown(text)


def test_a_folder_named_by_a_digest_is_a_path() -> None:
    """Containers mount such folders; to refuse their files would keep a program from paying."""
    path = f"/var/lib/docker/overlay2/{SECRETS[0].hex()}/merged/admin.macaroon"
    assert not is_misplaced(path)
    assert SECRETS[0].hex() not in shown(path)


@pytest.mark.parametrize(
    "value", [None, 7, 10**5000, pickle.Pickler, b"\0", [SECRETS[0].hex()], "x" * 1_000_000, "\ud800"], ids=range(8)
)
def test_any_value_has_a_text(value: object) -> None:
    """An error about a value mustn't be replaced by an error about its text."""
    text = shown(value)
    assert text
    assert len(text) < 600
    assert SECRETS[0].hex() not in text
