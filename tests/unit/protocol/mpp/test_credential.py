"""The credential of a charge is the server's own words and the preimage; and no text of ours holds it."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given, settings, strategies as st

from routeweiler_sync.protocol import schemes
from routeweiler_sync.protocol.mpp.challenge import parse_challenge
from routeweiler_sync.protocol.mpp.credential import (
    MAX_CREDENTIAL_CHARS,
    authorization,
    credential_header,
    is_credential,
    is_sendable,
    redact,
    token_of,
)
from tests.unit.protocol.mpp.samples import APERTURE, CREDENTIAL, PAID, PREIMAGE, VECTORS, lines_of

TOKEN = CREDENTIAL.split()[1]


@pytest.mark.parametrize("server", PAID)
def test_the_credential_is_the_one_that_the_server_took(server: str) -> None:
    """If failing: one byte of the echo differs, and what was paid for is refused."""
    exchange = PAID[server]
    read = parse_challenge(lines_of(exchange))
    assert read is not None
    sent = schemes.authorization(read.scheme, read.token, bytes.fromhex(exchange["preimage"]))
    assert sent == exchange["credential"]
    assert base64.urlsafe_b64decode(sent.split()[1] + "==").decode() == exchange["credential_json"]
    assert credential_header(read.token) == exchange["credential_field"]
    assert schemes.is_credential(sent)


def test_the_token_is_every_parameter_that_the_drafts_know_and_no_other() -> None:
    """If failing: the ledger's row doesn't make the same credential in a later run."""
    params = {name: f'{name}é\\"' for name in ("opaque", "id", "header", "zz", "digest", "realm")}
    token = token_of(params)
    assert json.loads(token) == {name: value for name, value in params.items() if name != "zz"}
    assert token == json.dumps(json.loads(token), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize(
    "bad", ["", "{", "[]", '"a"', "null", '{"id":1}', '{"zz":"1"}', '{"id":"\ud800"}', "[" * 100_000, "AGIAJEemVQ=="]
)
def test_a_token_of_another_scheme_makes_no_credential(bad: str) -> None:
    """If failing: a damaged row of the ledger is sent to a server, or raises what nobody catches."""
    assert not is_sendable(bad)
    with pytest.raises(ValueError) as caught:
        authorization("Payment", bad, PREIMAGE)
    assert PREIMAGE.hex() not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "preimage"), [("L402", PREIMAGE), ("payment", PREIMAGE), ("Payment", PREIMAGE[:31]), ("Payment", b"")]
)
def test_another_scheme_or_preimage_makes_no_credential(scheme: str, preimage: bytes) -> None:
    """If failing: a half credential is sent, which a server may count as a use."""
    with pytest.raises(ValueError):
        authorization(scheme, '{"id":"1"}', preimage)


def test_a_credential_that_no_server_takes_isnt_made() -> None:
    """If failing: what is paid can't be presented."""
    assert not is_sendable(token_of({"id": "x" * MAX_CREDENTIAL_CHARS}))
    assert is_sendable(token_of({"id": "x" * (MAX_CREDENTIAL_CHARS // 2)}))


@pytest.mark.parametrize(
    "spelt",
    [
        CREDENTIAL,
        CREDENTIAL.lower().split()[0] + "   " + TOKEN,
        f"PAYMENT {TOKEN}==",
        *(VECTORS["session"][name] for name in ("open", "bearer", "topUp", "close")),
    ],
)
def test_a_credential_is_known_in_every_spelling(spelt: str) -> None:
    """If failing: it stays on a request that is pickled, copied or redirected."""
    assert is_credential(spelt)


@pytest.mark.parametrize(
    "other", ["", "Payment", "Payment required", 'Payment id="1", realm="r"', f"Basic {TOKEN}", f"Bearer {TOKEN}", TOKEN]
)
def test_what_is_no_credential_of_a_charge_is_the_callers(other: str) -> None:
    """If failing: a header of the caller's own is taken off."""
    assert not is_credential(other)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: {CREDENTIAL}",
        f"authorization: payment\t{TOKEN}==",
        f"'Payment-Authorization': b'Payment {TOKEN}'",
        f"PAYMENT-AUTHORIZATION: PAYMENT  {TOKEN}",
        f'{{"Authorization": "{CREDENTIAL}"}}',
        f"Authorization: Payment\r\n {TOKEN}",
        f"sent {TOKEN} to the server",
        f"https://pages.example/?c=Payment%20{TOKEN}",
        CREDENTIAL[:-12],
        APERTURE["credential_json"],
        json.dumps(json.loads(APERTURE["credential_json"]), indent=2),
        f"Payment {base64.b64encode(json.dumps(json.loads(APERTURE['credential_json']), indent=1).encode()).decode()}",
        base64.urlsafe_b64encode(json.dumps(json.loads(APERTURE["credential_json"])).encode()).decode(),
        f'Payment method="lightning", preimage="{PREIMAGE.hex()}"',
        f"preimage={PREIMAGE.hex().upper()}",
        f"Invalid preimage: sha256({PREIMAGE.hex()}) != 00",
        *(VECTORS["session"][name] for name in ("open", "bearer", "topUp", "close")),
        str(VECTORS["problem_bodies"]["mppx wrong preimage"]),
    ],
)
def test_no_text_of_ours_holds_a_credential_or_a_preimage(text: str) -> None:
    """If failing: a log opens the page that was paid for."""
    shown = redact(text)
    for secret in (TOKEN[-60:], TOKEN[-60:-20], PREIMAGE.hex(), PREIMAGE.hex().upper(), VECTORS["session"]["preimage"], "1" * 64):
        assert secret not in shown
    for run in ("eyJjaGFsbGVuZ2UiO", "eyAiY2hhbGxlbmdlI"):
        assert run not in shown
    assert "<redacted>" in shown
    assert schemes.redact(text) == schemes.redact(schemes.redact(text))


@pytest.mark.parametrize(
    "text",
    [
        *(", ".join(lines_of(each)) for each in PAID.values()),
        "Payment Required",
        "Payment authorization failed for the payment b993be0006be9f46ab41d9f32dc79c43485caf78ccd465ab01c1b7681a26c824",
        "the payment b993be0006be9f46ab41d9f32dc79c43485caf78ccd465ab01c1b7681a26c824 is settled, its preimage isn't known",
    ],
)
def test_what_is_public_stays_readable(text: str) -> None:
    """If failing: logs and traces lose the payment hash, by which a payment is found."""
    assert redact(text) == text


def test_hiding_takes_time_in_proportion_to_the_text() -> None:
    """If failing: a hostile body keeps the payer busy."""
    begun_s = time.monotonic()
    for text in (
        "Payment " * 20_000,
        "Payment" + " " * 200_000,
        "eyJjaGFsbGVuZ2Ui" * 20_000,
        "preimage=" * 20_000,
        "Payment A" * 20_000,
    ):
        redact(text)
    assert time.monotonic() - begun_s < 3


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["id", "realm", "opaque", "description", "request"]), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(["{}", "x={}", '"{}"', "Authorization: {}\r\n", "({})", "{}, more"]),
)
def test_every_credential_that_is_made_is_known_hidden_and_read_back(params: dict[str, str], preimage: bytes, around: str) -> None:
    """If failing: some text in a challenge makes a credential that isn't hidden."""
    sent = authorization("Payment", token_of(params), preimage)
    said = json.loads(base64.urlsafe_b64decode(sent.split()[1] + "=="))
    assert said == {"challenge": params, "payload": {"preimage": preimage.hex()}}
    assert is_credential(sent)
    assert sent.split()[1][16:] not in redact(around.format(sent))
    assert sent.split()[1][16:] not in redact(around.format(sent.split()[1]))
