"""Every answer of lnd is read for what it proves about the money, and for nothing more."""

from __future__ import annotations

import hashlib

import grpc
import pytest

from routeweiler_sync.funding.lnd.replies import RULES, is_permission_denied, read_error, read_payment
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.funding.replies import REASON_CHARS_MAX, WalletReply

PREIMAGE, OTHER_PREIMAGE = b"\x07" * 32, b"\x08" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
SQL = "failed to initialize payment: payment is not initializable: "

EXISTS = ["invoice is already paid", "payment is in transition", "payment already exists"]
EXPIRED = ["invoice expired. Valid until 2026-01-01 00:00:00 +0000 UTC"]
REFUSED = [
    "checksum failed. Expected ww7xyn, got ww7xyq.",
    "invalid bech32 string length 7",
    "invoice not for current active network 'regtest'",
    "invalid character in string: ' '",
    "string not all lowercase or all uppercase",
    "short invoice",
    "invoice is too large",
    "last tagged field is broken",
    "route hint field contains no hop data",
    "cannot have both route hints and blinded payment paths",
    "amount cannot be negative",
    "invalid vertex length of 0, want 33",
    'prefix should be "ln"',
    "invalid invoice signature",
    "invoice contains unknown feature bits: 100",
    "amount must be specified when paying a zero amount invoice",
    "amount must not be specified when paying a non-zero amount invoice",
    "self-payments not allowed",
    "payment request must contain either a payment address or blinded paths",
    "the AMP flag (--amp or SendPaymentRequest.Amp) must be set to pay an AMP invoice",
    "cltv limit 10 should be greater than 43",
    "wallet locked, unlock it to enable full RPC access",
    "wallet not created, create one to enable full RPC access",
    "the RPC server is in the process of starting up, but not yet ready to accept calls",
    "waiting to start, RPC services not available",
    "expected 1 macaroon, got 0",
    "verification failed: signature mismatch after caveat verification",
    "cannot get macaroon: root key with id 0 doesn't exist",
    "cannot retrieve macaroon: cannot get macaroon: root key with id 7 doesn't exist",
    "cannot retrieve macaroon: cannot unmarshal macaroon id: proto: cannot parse invalid wire-format data",
    "unmarshal v1: cannot parse field name",
    "permission denied",
    "empty macaroon data",
    "encoding/hex: odd length hex string",
    "cannot determine data format of binary-encoded macaroon",
    "unmarshal v2: field data extends past end of buffer",
]
PROVES_NOTHING = [
    "",
    "routerrpc server shutting down",
    "some text of a later lnd",
    "failed to initialize payment: database is locked",
    "open /data/channel.db: permission denied",
    "permission denied: /data/channel.db",
    "unable to deserialize payment",
    "the invoice expired",
    "payment already exists in the other shard",
    "self-payment",
]
CODES = [code.name for code in grpc.StatusCode]
ALL_TEXTS = EXISTS + EXPIRED + REFUSED + PROVES_NOTHING


@pytest.mark.parametrize(
    "change", [str, str.upper, str.title, lambda text: f" {text}\n"], ids=["as is", "upper", "title", "padded"]
)
@pytest.mark.parametrize(
    ("texts", "reply"),
    [
        (EXISTS, WalletReply.EXISTS),
        (EXPIRED, WalletReply.EXPIRED),
        (REFUSED, WalletReply.REFUSED),
        (PROVES_NOTHING, WalletReply.UNKNOWN),
    ],
)
def test_a_send_is_read_by_its_text_whatever_the_case(texts: list[str], reply: WalletReply, change) -> None:
    """A refusal taken for "unknown" blocks a scope for nothing; an unknown outcome taken for a refusal pays twice."""
    for text in texts:
        assert read_error("send", "UNKNOWN", change(text)).reply is reply, text


@pytest.mark.parametrize("text", [*EXISTS, *(SQL + text for text in EXISTS)])
@pytest.mark.parametrize("code", ["ALREADY_EXISTS", "UNKNOWN"])
def test_already_paid_is_understood_of_every_lnd(code: str, text: str) -> None:
    """0.17 says it without the code, native SQL with a prefix. Not understood, a paid token would wait for ever."""
    assert read_error("send", code, text).reply is WalletReply.EXISTS


@pytest.mark.parametrize("code", [code for code in CODES if code not in ("UNKNOWN", "ALREADY_EXISTS", "UNIMPLEMENTED")])
def test_no_other_code_proves_anything_about_a_send(code: str) -> None:
    """A proxy may put any text on UNAVAILABLE while lnd pays on."""
    for text in ALL_TEXTS:
        assert read_error("send", code, text).reply is WalletReply.UNKNOWN, text


def test_an_unknown_method_is_a_refusal_of_a_send() -> None:
    """A node without the router's calls has read no order: the user can be told that Nothing was spent."""
    assert (
        read_error("send", "UNIMPLEMENTED", "unknown method SendPaymentV2 for service routerrpc.Router").reply
        is WalletReply.REFUSED
    )


def test_after_a_message_no_error_says_that_the_send_started_nothing() -> None:
    """The message shows that the payment exists; "permission denied" after it must not end the row as unspent."""
    for code in CODES:
        for text in ALL_TEXTS:
            assert read_error("send", code, text, started=True).reply is WalletReply.UNKNOWN, (code, text)


def test_a_track_knows_not_found_and_nothing_else() -> None:
    """A locked wallet or a lacking right, asked about a payment, says nothing about it; "refused" would read as "not paid"."""
    for code in CODES:
        for text in [*ALL_TEXTS, "payment isn't initiated"]:
            expected = WalletReply.NOT_FOUND if code == "NOT_FOUND" else WalletReply.UNKNOWN
            assert read_error("track", code, text).reply is expected, (code, text)


def test_not_found_of_a_send_proves_nothing() -> None:
    """lnd answers a send so if the payment vanishes after it was written down: it has been started."""
    assert read_error("send", "NOT_FOUND", "payment isn't initiated").reply is WalletReply.UNKNOWN


#: What litd's check of an order says, before lnd hears of it (litd, accounts/checkers.go and accounts/interface.go).
REFUSED_BY_LITD = [
    "error validating account balance: account balance insufficient",
    "error validating account balance: account has expired",
    "error validating account balance: account not found",
    "error associating payment: error updating account: database not open",
    "error decoding pay req: checksum failed",
    "account has expired",
    "account not found",
    "account service has been disabled",
    "this RPC call is not supported with restricted account macaroons",
]
IN_FLIGHT_IN_LITD = [
    f"error associating payment: payment with hash {'ab' * 32} is already in flight or succeeded (status {status})"
    for status in ("UNKNOWN", "IN_FLIGHT", "SUCCEEDED")
]
#: What litd's interceptor says of lnd's answers too, when the payment may have begun (accounts/interceptor.go).
UNCLEAR_IN_LITD = [
    "account 0011223344556677 has expired",
    "error getting account 0011223344556677: account not found",
    "the account service has been stopped",
    "intercept timeout reached",
    "interceptor RPC client quit",
    "payment does not belong to this account",
    "payment with hash abcd is not associated with this account",
    "my account has expired",
    "account not found: x",
]


@pytest.mark.parametrize(
    ("texts", "reply"),
    [
        (REFUSED_BY_LITD, WalletReply.REFUSED),
        (IN_FLIGHT_IN_LITD, WalletReply.EXISTS),
        (UNCLEAR_IN_LITD, WalletReply.UNKNOWN),
    ],
)
def test_a_send_with_a_litd_account_is_read_by_its_text(texts: list[str], reply: WalletReply) -> None:
    """An empty account, taken for "unknown", blocks the page; "has expired" after the start, taken for a refusal, pays twice."""
    for text in texts:
        for code in CODES:
            expected = reply if code == "UNKNOWN" else read_error("send", code, "some text of a later lnd").reply
            assert read_error("send", code, text).reply is expected, (code, text)
        assert read_error("send", "UNKNOWN", text, started=True).reply is WalletReply.UNKNOWN, text


def test_a_litd_account_s_unknown_hash_is_not_found() -> None:
    """Read as no answer, the row of an order that never arrived would stay open for ever."""
    assert read_error("track", "UNKNOWN", "payment does not belong to this account").reply is WalletReply.NOT_FOUND
    assert read_error("track", "UNKNOWN", "payment does not belong to this account", started=True).reply is WalletReply.UNKNOWN
    for text in ["payment does not belong to this account or another", *REFUSED_BY_LITD, *IN_FLIGHT_IN_LITD, *UNCLEAR_IN_LITD[:5]]:
        assert read_error("track", "UNKNOWN", text).reply is WalletReply.UNKNOWN, text


def test_every_row_says_why() -> None:
    """A row without its reason can't be checked against lnd's source by the next reader."""
    assert all(len(row.why) > 20 for row in RULES)


def test_a_reason_is_printable_and_bounded() -> None:
    """A server's text ends in logs and terminals: escape codes and megabytes must not."""
    reason = read_error("send", "UNKNOWN", "a\x1b[31m\n" * 10_000).reason
    assert reason is not None
    assert reason.isprintable()
    assert len(reason) <= REASON_CHARS_MAX


def _payment(**fields: object) -> pb.Payment:
    return pb.Payment(**{"payment_preimage": "0" * 64, "value_msat": 10_000, "fee_msat": 7, **fields})  # type: ignore[arg-type]


def test_success_brings_preimage_amount_and_fee() -> None:
    """The ledger books what is told here: to the msat."""
    answer = read_payment(_payment(status=2, payment_preimage=PREIMAGE.hex()), HASH)
    assert (answer.reply, answer.preimage, answer.amount_msat, answer.fee_msat) == (WalletReply.SUCCEEDED, PREIMAGE, 10_000, 7)


@pytest.mark.parametrize("preimage", ["0" * 64, "", "zz", "07" * 31, "08" * 32])
def test_a_preimage_that_does_not_fit_is_never_a_token(preimage: str) -> None:
    """The money is gone, which has to be booked; a token made of a wrong preimage would be refused for ever."""
    answer = read_payment(_payment(status=2, payment_preimage=preimage), HASH)
    assert answer.reply is WalletReply.WRONG_PREIMAGE
    assert (answer.amount_msat, answer.fee_msat) == (10_000, 7)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "TIMEOUT"),
        (2, "NO_ROUTE"),
        (3, "ERROR"),
        (4, "INCORRECT_PAYMENT_DETAILS"),
        (5, "INSUFFICIENT_BALANCE"),
        (6, "CANCELED"),
        (0, "NONE"),
        (7, "REASON_7"),
    ],
)
def test_failure_reasons_have_lnds_names(number: int, name: str) -> None:
    """The user is told why: too little balance and no route ask for different deeds."""
    answer = read_payment(_payment(status=3, failure_reason=number), HASH)
    assert (answer.reply, answer.reason) == (WalletReply.FAILED, name)


@pytest.mark.parametrize("status", [0, 1, 4])
def test_status_alone_decides_that_a_payment_is_under_way(status: int) -> None:
    """lnd may set a failure reason while HTLCs are out; taken for the end, the invoice would be given up and still be paid."""
    assert read_payment(_payment(status=status, failure_reason=2), HASH).reply is WalletReply.IN_FLIGHT


def test_status_alone_decides_that_a_payment_succeeded() -> None:
    """The same the other way round: a reason beside a success takes nothing away."""
    assert read_payment(_payment(status=2, failure_reason=1, payment_preimage=PREIMAGE.hex()), HASH).reply is WalletReply.SUCCEEDED


def test_a_status_of_the_future_proves_nothing() -> None:
    """A guess about what it means could end a row that is being paid."""
    assert read_payment(_payment(status=5), HASH).reply is WalletReply.UNKNOWN


@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_message_about_another_payment_proves_nothing(status: int) -> None:
    """A broken proxy may mix answers up: by the failure of another payment this one, which is paid, would be paid again."""
    other = hashlib.sha256(OTHER_PREIMAGE).hexdigest()
    answer = read_payment(_payment(status=status, payment_hash=other, payment_preimage=OTHER_PREIMAGE.hex()), HASH)
    assert (answer.reply, answer.preimage) == (WalletReply.UNKNOWN, None)
    own = read_payment(_payment(status=status, payment_hash=HASH.hex().upper(), payment_preimage=PREIMAGE.hex()), HASH)
    assert own.reply is (WalletReply.IN_FLIGHT, WalletReply.SUCCEEDED, WalletReply.FAILED)[status - 1]


def test_a_preimage_is_in_no_repr() -> None:
    """Answers are logged."""
    assert PREIMAGE.hex() not in repr(read_payment(_payment(status=2, payment_preimage=PREIMAGE.hex()), HASH))
    assert repr(PREIMAGE) not in repr(read_payment(_payment(status=2, payment_preimage=PREIMAGE.hex()), HASH))


def test_permission_denied_is_the_macaroons_alone() -> None:
    """Only then may a configured node_pubkey be trusted unasked."""
    assert is_permission_denied("UNKNOWN", "permission denied")
    assert not is_permission_denied("UNAVAILABLE", "permission denied")
    assert not is_permission_denied("UNKNOWN", "open x: permission denied")
