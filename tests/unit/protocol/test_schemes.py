"""The list of schemes: each is read, answered and hidden. A second, made-up scheme shows that nothing knows only L402."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from routeweiler_sync.errors import ChallengeParseError
from routeweiler_sync.protocol import schemes
from routeweiler_sync.protocol.challenge import Challenge
from routeweiler_sync.protocol.schemes import SCHEMES, PaidScheme
from tests.support.challenge_builders import L402, LSAT, PAYMENT, TOKEN

PREIMAGE = bytes(range(32))
OURS = f"L402 {TOKEN}:{PREIMAGE.hex()}"
BARTER_CHALLENGE = 'Barter goods="goats"'
SECRET = "goat-4711"
THEIRS = f"Barter {SECRET}"


@pytest.fixture
def barter(monkeypatch: pytest.MonkeyPatch) -> PaidScheme:
    """A second scheme, behind L402 in the list: its credential looks like none of L402's."""

    def parse(lines: Sequence[str]) -> Challenge | None:
        if not any(line.startswith("Barter") for line in lines):
            return None
        offer = SCHEMES[0].parse([L402])
        assert offer is not None
        return replace(offer, scheme="BARTER", rail="kind")

    made = PaidScheme(
        names=("BARTER",),
        rail="kind",
        parse=parse,
        authorization=lambda name, token, preimage: f"Barter {token}",
        is_credential=lambda value: value.startswith("Barter "),
        redact=lambda text: re.sub(r"Barter \S+", "Barter <hidden>", text),
    )
    monkeypatch.setattr(schemes, "SCHEMES", (*SCHEMES, made))
    return made


def test_the_credentials_of_every_scheme_are_hidden(barter: PaidScheme) -> None:
    """A scheme that was entered and forgotten by the redaction would write what was paid for into logs, traces and pickles."""
    text = schemes.redact(f"sent {OURS} and then {THEIRS}, and {THEIRS} again")
    for secret in (TOKEN, PREIMAGE.hex(), SECRET):
        assert secret not in text
    assert text.startswith("sent L402 <redacted>")
    assert text.endswith("Barter <hidden> again")


def test_only_the_schemes_of_the_list_are_hidden() -> None:
    """What isn't ours is the caller's to log; and the test above sees the second scheme's entry, not some general rule."""
    assert SECRET in schemes.redact(THEIRS)


@pytest.mark.parametrize(("value", "expected"), [(OURS, True), (THEIRS, True), ("Basic dXNlcjpwYXNz", False), ("", False)])
def test_a_credential_of_any_scheme_is_recognised(barter: PaidScheme, value: str, expected: bool) -> None:
    """One that isn't recognised stays on a request that is pickled, copied or redirected, and goes to whoever gets that."""
    assert schemes.is_credential(value) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [(L402, True), (LSAT.lower(), True), (BARTER_CHALLENGE, True), (PAYMENT, True), ("Basic realm=x", False)]
)
def test_every_scheme_is_noticed_in_any_case(barter: PaidScheme, text: str, expected: bool) -> None:
    """A 402 that isn't noticed is handed to the caller unpaid; one noticed for nothing loads the whole of paying."""
    assert schemes.mentions_scheme(text) is expected


@pytest.mark.parametrize(("name", "rail"), [("L402", "l402"), ("LSAT", "l402"), ("BARTER", "kind")])
def test_a_scheme_pays_by_its_own_rail(barter: PaidScheme, name: str, rail: str) -> None:
    """Booked on another's rail, a payment would pass a budget or policy that doesn't allow its own."""
    assert schemes.rail_of(name) == rail


def test_the_rail_of_a_challenge_is_its_schemes_rail() -> None:
    """Policies read the challenge, budgets ask the ledger's row: if the two differ, one of them allows what the other forbids."""
    for line in (L402, LSAT):
        challenge = schemes.parse_challenge(line)
        assert challenge is not None
        assert challenge.rail == schemes.rail_of(challenge.scheme)


@pytest.mark.parametrize("lines", [[L402, BARTER_CHALLENGE], [BARTER_CHALLENGE, L402], [BARTER_CHALLENGE, PAYMENT, LSAT]])
def test_of_several_offers_the_first_scheme_of_the_list_is_answered(barter: PaidScheme, lines: list[str]) -> None:
    """By the server's order it would be the server's choice how its customers pay."""
    challenge = schemes.parse_challenge(lines)
    assert challenge is not None
    assert challenge.rail == "l402"


def test_a_later_scheme_is_answered_where_it_alone_is_offered(barter: PaidScheme) -> None:
    """A server that takes only the second scheme would never be paid."""
    challenge = schemes.parse_challenge([PAYMENT, BARTER_CHALLENGE])
    assert challenge is not None
    assert (challenge.scheme, challenge.rail) == ("BARTER", "kind")


def test_what_no_scheme_of_the_list_can_pay_is_no_offer(barter: PaidScheme) -> None:
    """Taken for one, an answer with other schemes would end in an error, and not in the response that `requests` gives."""
    assert schemes.parse_challenge([PAYMENT, 'Basic realm="shop"']) is None
    assert schemes.parse_challenge("") is None


def test_one_line_is_read_as_a_list_of_one() -> None:
    """Read character by character, a header given as a string would hold no offer at all."""
    assert schemes.parse_challenge(L402) == schemes.parse_challenge([L402]) is not None


def test_a_spoiled_challenge_is_told_without_its_token() -> None:
    """The error's text is logged, and the token may open the page for whoever has the preimage."""
    with pytest.raises(ChallengeParseError) as caught:
        schemes.parse_challenge(f'L402 token="{TOKEN}"')
    assert TOKEN not in str(caught.value)


def test_each_scheme_makes_its_own_credential(barter: PaidScheme) -> None:
    """In another scheme's form, the server wouldn't know what was paid for."""
    assert schemes.authorization("L402", TOKEN, PREIMAGE) == OURS
    assert schemes.authorization("LSAT", TOKEN, PREIMAGE) == OURS.replace("L402", "LSAT")
    assert schemes.authorization("BARTER", SECRET, PREIMAGE) == THEIRS


@pytest.mark.parametrize("name", ["BARTER", "l402", "Basic", ""])
def test_an_unknown_scheme_is_refused_without_a_secret(name: str) -> None:
    """A row written by a newer version may name one: silence would send its token in the wrong form, a chatty text would log it."""
    for ask in (lambda: schemes.rail_of(name), lambda: schemes.authorization(name, TOKEN, PREIMAGE)):
        with pytest.raises(ValueError, match="no scheme of this name") as caught:
            ask()
        assert TOKEN not in str(caught.value)
        assert PREIMAGE.hex() not in str(caught.value)


def test_every_scheme_hides_and_knows_what_it_makes() -> None:
    """A scheme whose credential its own redaction doesn't find leaks with the first call."""
    for scheme in SCHEMES:
        for name in scheme.sent_as or scheme.names:
            token = TOKEN if scheme.reusable else '{"id":"1"}'
            credential = scheme.authorization(name, token, PREIMAGE)
            assert schemes.is_credential(credential)
            assert credential.split()[1] not in schemes.redact(f"{scheme.credential_header(token)}: {credential}")
            assert name.upper() in scheme.names


def test_no_two_schemes_share_a_name_or_a_rail() -> None:
    """The second of the two would never be reached."""
    names = [name for scheme in SCHEMES for name in scheme.names]
    rails = [scheme.rail for scheme in SCHEMES]
    assert len(set(names)) == len(names)
    assert len(set(rails)) == len(rails)
