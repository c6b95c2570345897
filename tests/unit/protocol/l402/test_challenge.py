"""A 402 is answered if, and only if, it makes an offer that can be read in one way."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings, strategies as st

from routeweiler_sync.errors import ChallengeParseError
from routeweiler_sync.protocol.challenge import Challenge
from routeweiler_sync.protocol.http_auth import MAX_CHALLENGES, MAX_HEADER_CHARS, MAX_PARAMS, schemes_offered
from routeweiler_sync.protocol.invoice import Invoice, decode_invoice
from routeweiler_sync.protocol.l402 import challenge as module
from routeweiler_sync.protocol.l402.challenge import MAX_CANDIDATES, is_named_alone, parse_challenge
from routeweiler_sync.protocol.l402.credential import MAX_TOKEN_CHARS, is_sendable
from tests.support.challenge_builders import INVOICE, L402, LSAT, PAYMENT, PAYMENT_HASH, TOKEN, invoice, macaroon, token

# From the L402 specification, "Server Flow". Its invoice is of 2018 and has no payment secret.
_SPEC_TOKEN = "AGIAJEemVQUTEyNCR0exk7ek90Cg=="
_SPEC = (
    f'L402 version="0", token="{_SPEC_TOKEN}", '
    'invoice="lnbc1500n1pw5kjhmpp5fu6xhthlt2vucmzkx6c7wtlh2r625r30cyjsfqhu8rsx4xpz5lwqdpa2fjkzep6yptksct5yp5hxgrrv96hx6twvusycn3qv9jx'
    "7ur5d9hkugr5dusx6cqzpgxqr23s79ruapxc4j5uskt4htly2salw4drq979d7rcela9wz02elhypmdzmzlnxuknpgfyfm86pntt8vvkvffma5qc9n50h4mvqhngadqy3"
    'ngqjcym5a"'
)
_OTHER = invoice("lnbcrt200n")
_OPAQUE = f'L402 token="{_SPEC_TOKEN}", invoice="{INVOICE}"'


def _parsed(lines: str | list[str]) -> Challenge:
    read = parse_challenge(lines)
    assert read is not None
    return read


def test_all_that_a_purchase_needs_is_in_the_challenge() -> None:
    """If failing: what is paid, for what token and in which scope, isn't what the server said."""
    text = token(macaroon(caveats=["services=pages:0", "pages_valid_until=1700000100"]))
    read = _parsed(f'L402 version="0", token="{text}", invoice="{INVOICE}"')
    assert (read.scheme, read.token, read.payment_hash) == ("L402", text, PAYMENT_HASH)
    assert (read.names_scope, read.valid_until) == ("services=pages:0", 1_700_000_100)
    assert (read.rail, read.reusable) == ("l402", True)
    assert read.invoice == decode_invoice(INVOICE)
    assert read.names_payment_hash == PAYMENT_HASH


def test_the_specifications_opaque_token_is_taken_verbatim() -> None:
    """If failing: servers whose tokens aren't macaroons can't be paid."""
    read = _parsed(_SPEC[: _SPEC.index("lnbc")] + INVOICE + '"')
    assert (read.token, read.names_payment_hash, read.names_scope, read.valid_until) == (_SPEC_TOKEN, None, None, None)


def test_the_specifications_invoice_is_refused_for_want_of_a_payment_secret() -> None:
    """If failing: an invoice that lnd can't pay is reserved for, or the reason isn't told."""
    with pytest.raises(ChallengeParseError, match="payment_secret"):
        parse_challenge(_SPEC)


@pytest.mark.parametrize(
    "lines",
    [
        [LSAT, L402],
        [L402, LSAT],
        f"{LSAT}, {L402}",
        [LSAT, L402, PAYMENT],
        f"{PAYMENT}, {LSAT}, {L402}",
        f'Basic realm="a, b", {LSAT}, Bearer abc.def==, {L402}, Negotiate',
        [f"Negotiate, {L402}", "Basic"],
        f'Digest qop="auth,auth-int", nonce=abc, {L402}',
        f",, ,{L402},,",
        L402.replace("L402", "l402").replace("token", "TOKEN").replace("macaroon", "Macaroon"),
        f'L402 invoice="{INVOICE}" ,\t token = "{TOKEN}"',
        f'L402 realm="x", invoice={INVOICE}, macaroon={TOKEN}',
        f"L402 token={TOKEN},invoice={INVOICE}",
        f'L402\ttoken="{TOKEN}",invoice="{INVOICE.upper()}"',
        f'L402 , token="{TOKEN}", invoice="{INVOICE}"',
        f'L402 token="{TOKEN}", token="{TOKEN}", invoice="{INVOICE}", INVOICE="{INVOICE}"',
        f'L402 token="{TOKEN}",\r\n invoice="{INVOICE}"',
        f'L402 token="\\{TOKEN}", invoice="\\{INVOICE}"',
        [f'L402 token="{TOKEN}"', f'invoice="{INVOICE}"'],
        f"L402 macaroon={TOKEN} invoice={INVOICE}",
        f'L402 macaroon="{TOKEN}"\t  invoice = "{INVOICE}" version=0, realm="x" y=z',
        f'Basic realm="x" charset=utf-8, L402 token={TOKEN} invoice="{INVOICE}", Bearer',
        f'L402 token="{TOKEN}", invoice="{INVOICE}", note="L402 token=\\"x\\", invoice=\\"y\\"", url="http://x/?a=b,c"',
    ],
    ids=itertools.count(),
)
def test_a_good_offer_is_found_however_it_is_written(lines: str | list[str]) -> None:
    """If failing: a paywall that other clients pay is refused, or its LSAT line is answered to a server that wants L402."""
    read = _parsed(lines)
    assert (read.scheme, read.token, read.invoice.bolt11) == ("L402", TOKEN, INVOICE)


@pytest.mark.parametrize(
    "broken",
    [
        "Basic realm=a b c",
        "Basic realm=@@@ @@@",
        "@@@",
        "=",
        '="x"',
        'Basic realm="a"b',
        'Basic realm="a" "b"',
        "Basic a/b c",
        "Bearer ===",
        "a=b",
        "ünïcode ünïcode",
        "Basic " + "x " * 1000,
        ", ".join(f'a{at}="b"' for at in range(MAX_PARAMS + 9)),
        "Digest " + ", ".join(f'a{at}="b"' for at in range(MAX_PARAMS + 9)),
        "L402",
        "L402 token68==",
        f'L402 token="{TOKEN}"',
        f'L402 token="{TOKEN}", invoice="lnbc1"',
    ],
    ids=itertools.count(),
)
def test_a_broken_challenge_hides_no_good_one_behind_it(broken: str) -> None:
    """If failing: one odd line of a proxy in between makes a paywall unpayable."""
    for lines in ([broken, L402], f"{broken}, {L402}", f"{broken},{LSAT},{L402}"):
        assert _parsed(lines).invoice.bolt11 == INVOICE
    assert _parsed(['Basic realm="never closed', L402]).token == TOKEN


@pytest.mark.parametrize(
    "lines",
    [
        [],
        "",
        ["", ""],
        ", ,",
        "Basic",
        'Basic realm="x"',
        PAYMENT,
        [PAYMENT, "Bearer abc=="],
        "L402x token=a",
        "Bearer L402",
        'Basic realm="L402"',
        f"Basic realm=\"{L402}\"".replace('"', '\\"').replace("\\", "", 1)[:-2] + '"',
        f'Basic realm="open, {L402}',
        f'token="{TOKEN}", invoice="{INVOICE}"',
        'Basic realm="\\',
        "x" * (2 * MAX_HEADER_CHARS),
        ["a," * MAX_CHALLENGES + "a"],
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_offers_no_l402_is_not_ours(lines: str | list[str]) -> None:
    """If failing: text that somebody wrote into another scheme's string is paid, or ordinary 402s raise."""
    assert parse_challenge(lines) is None


_SECRET = "SeCrEtToKeN0123456789"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("L402", "no token"),
        ("LSAT", "no token"),
        (f"L402 {_SECRET}==", "no token"),
        (f"L402 {_SECRET}/+", "malformed"),
        (f'L402 invoice="{INVOICE}"', "no token"),
        (f'L402 token="", invoice="{INVOICE}"', "no token"),
        (f'L402 token="{_SECRET}"', "no invoice"),
        (f'L402 token="{_SECRET}", invoice=', "no invoice"),
        (f'L402 token="{_SECRET}", Basic realm="x", invoice="{INVOICE}"', "no invoice"),
        (f'L402 token="{_SECRET}", invoice="{INVOICE}', "malformed"),
        (f'L402 token="{_SECRET}, invoice="{INVOICE}"', "malformed"),
        (f'L402 token="{_SECRET}"invoice="{INVOICE}"', "malformed"),
        (f'L402 token="{_SECRET}" and invoice="{INVOICE}"', "malformed"),
        (f'L402 token="{_SECRET}"; invoice="{INVOICE}"', "malformed"),
        (f'L402 token="{_SECRET}", invoice="{INVOICE}", @', "malformed"),
        (f'L402 token="{_SECRET}", invoice="{INVOICE}", token="x"y', "malformed"),
        (
            f'L402 token="{_SECRET}", invoice="{INVOICE}", ' + ", ".join(f"a{at}=b" for at in range(MAX_PARAMS)),
            "malformed, or more",
        ),
        (f'L402 token="{_SECRET}", token="other", invoice="{INVOICE}"', "given twice"),
        (f'L402 token="{_SECRET}", macaroon="other", invoice="{INVOICE}"', "given twice"),
        (f'L402 token="{_SECRET}", Invoice="{INVOICE}", invoice="{_OTHER}"', "given twice"),
        (f'L402 token="{_SECRET}", invoice="{INVOICE}", version="0", version="1"', "given twice"),
        (f'L402 token="{_SECRET}:x", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET} x", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}\\"x", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}\x7f", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}\x01", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}\r\nX: y", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}é", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET * MAX_TOKEN_CHARS}"'[:60_000] + f'", invoice="{INVOICE}"', "can't be sent back"),
        (f'L402 token="{_SECRET}", invoice="lnbc10n1qqqqqq"', "can't be decoded"),
        (f'L402 token="{_SECRET}", invoice="{invoice("lnbcrt")}"', "no amount"),
        (f'L402 token="{_SECRET}", invoice="{_SECRET}"', "isn't BOLT-11|mixes"),
        ([f'L402 token="{_SECRET}"', 'LSAT macaroon="x", invoice="y"'], "L402: it has no invoice; LSAT: the invoice"),
        ([f'L402 token="{_SECRET}", invoice="{INVOICE}"', '"never closed'], "malformed"),
        ([f'L402 token="{_SECRET}", invoice="{INVOICE}"', "x" * MAX_HEADER_CHARS], "is above"),
        (f'{"a," * MAX_CHALLENGES}L402 token="{_SECRET}", invoice="{INVOICE}"', "is above"),
    ],
    ids=itertools.count(),
)
def test_an_offer_that_cannot_be_used_says_why_and_keeps_the_secret(lines: str | list[str], reason: str) -> None:
    """If failing: money is reserved for a token that can't be used, or an error message carries a token into the logs."""
    with pytest.raises(ChallengeParseError, match=reason) as caught:
        parse_challenge(lines)
    assert caught.value.spent is False
    assert "Nothing was spent" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert _SECRET not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("L402", True),
        ("lsat", True),
        ('L402 realm="shop"', True),
        ("L402 price-only", True),
        ('L402 version="0", realm=x', True),
        (["Basic realm=x", "L402"], True),
        (["LSAT", 'L402 realm="x"'], True),
        ("L402 token68==", True),
        ("", False),
        ("Basic realm=x", False),
        ("XL402", False),
        ('Basic realm="L402"', False),
        (L402, False),
        ([LSAT, "L402"], False),
        (f'L402 token="{TOKEN}"', False),
        (f"L402 macaroon={TOKEN}", False),
        (f'L402 invoice="{INVOICE}"', False),
        ('L402 macaroon=""', False),
        ('L402 macaroon="never closed', False),
        ("L402 realm=x y z", False),
        ("L402 @@@", False),
        ("a," * (MAX_CHALLENGES + 1) + "L402", False),
    ],
    ids=itertools.count(),
)
def test_a_scheme_that_is_named_alone_offers_nothing(lines: str | list[str], expected: bool) -> None:
    """If failing: half an offer is taken for none, so that nobody learns what is wrong; or a refusal is taken for an offer."""
    assert is_named_alone([lines] if isinstance(lines, str) else lines) == expected


def test_the_best_offer_wins() -> None:
    """If failing: which of two prices is paid depends on chance, or an unusable first offer spoils the answer."""
    cheap, dear = (f'token="{TOKEN}", invoice="{text}"' for text in (INVOICE, _OTHER))
    bad = f'token="{TOKEN}", invoice="{INVOICE[:-1]}"'
    for lines, scheme, text in [
        ([f"L402 {cheap}", f"L402 {dear}"], "L402", INVOICE),
        ([f"L402 {dear}", f"L402 {cheap}"], "L402", _OTHER),
        ([f"LSAT {cheap}", f"L402 {dear}"], "L402", _OTHER),
        ([f"LSAT {cheap}", f"LSAT {dear}"], "LSAT", INVOICE),
        ([f"L402 {bad}", f"L402 {dear}"], "L402", _OTHER),
        ([f"L402 {bad}", f"lsat {dear}"], "LSAT", _OTHER),
    ]:
        read = _parsed(lines)
        assert (read.scheme, read.invoice.bolt11) == (scheme, text)


def test_a_log_can_name_the_schemes_of_a_402_that_is_not_ours() -> None:
    """If failing: the user of an MPP-only server isn't told why nothing was paid, or the log shows a stray token."""
    assert schemes_offered([PAYMENT, 'Basic realm="L402 x=y"', "Bearer abc=="]) == ("Payment", "Basic", "Bearer")
    assert schemes_offered(f"{PAYMENT}, {PAYMENT}, {L402}") == ("Payment", "L402")
    assert schemes_offered(f"Payment, {TOKEN.strip('=').replace('/', 'x')}") == ("Payment",)
    assert schemes_offered("") == schemes_offered([]) == schemes_offered("a," * 5000) == schemes_offered('"x') == ()


def test_nothing_secret_is_shown() -> None:
    """If failing: a token stands in a log or a traceback."""
    read = _parsed(L402)
    assert TOKEN not in repr(read)
    assert PAYMENT_HASH.hex() in repr(read) or repr(PAYMENT_HASH) in repr(read)


def test_libraries_for_paying_are_imported_with_the_first_challenge_only() -> None:
    """If failing: `import routeweiler_sync` costs what only paying needs, in programs that never pay."""
    code = (
        "import sys, routeweiler_sync.protocol.l402.challenge as c\n"
        "assert c.parse_challenge('Basic realm=\"x\"') is None\n"
        "print(sorted({'bolt11', 'bitstring', 'coincurve', 'pymacaroons', 'nacl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_number_of_signatures_checked_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """If failing: one header full of bad invoices keeps a thread busy for seconds."""
    tried: list[str] = []

    def refuse(text: str) -> Invoice:
        tried.append(text)
        raise ChallengeParseError("no")

    monkeypatch.setattr(module, "decode_invoice", refuse)
    with pytest.raises(ChallengeParseError):
        parse_challenge([f'L402 token="t", invoice="i{at}"' for at in range(MAX_CHALLENGES)])
    assert len(tried) == MAX_CANDIDATES


@pytest.mark.parametrize(
    "unit",
    [
        "a=b ", 'a="b" ', "a=b c ",
        ",", '"', '\\"', "a,", "a b,", "a=", '="', "L402 ", "L402,", 'L402 a="b\\', 'L402 a="\\\\', "L402 a=b,",
        'L402 token="x", invoice="y", ', " ", "\t=", "a =", "a\\", '"\\a', 'a="', "Basic a, b=", "\x00", "é",
    ],
)  # fmt: skip
def test_any_header_is_read_in_bounded_time(unit: str) -> None:
    """If failing: a hostile server hangs its clients with one header. (Quadratic work at this size takes a minute.)"""
    text = (unit * MAX_HEADER_CHARS)[:MAX_HEADER_CHARS]
    few = (unit * MAX_HEADER_CHARS)[: 8 * MAX_CHALLENGES]
    for lines in (
        text,
        few + text[len(few) :],
        "L402 a=" + text[7:],
        'L402 a="' + text[8:],
        [few] * (MAX_HEADER_CHARS // len(few)),
    ):
        started = time.process_time()
        with contextlib.suppress(ChallengeParseError):
            parse_challenge(lines)
        schemes_offered(lines)
        assert time.process_time() - started < 3


_FOREIGN = st.sampled_from(
    [
        PAYMENT,
        "Negotiate",
        "Bearer abc.def==",
        'Basic realm="a, L402 token=\\"x\\", invoice=\\"y\\""',
        "Digest nonce=a/b+c=, qop=auth",
        "",
    ]
)
_UNKNOWN = st.sampled_from(['version="0"', "version=0", 'x="a, b=\\"c\\""', 'realm=""', "y=1+1=2"])
_GAP = st.sampled_from(["", " ", "\t", "  "])


@st.composite
def _written(draw: st.DrawFn) -> list[str]:
    """The same offer, written in one of the ways that the grammar and the specification allow."""

    def param(name: str, value: str) -> str:
        name = draw(st.sampled_from([name, name.upper(), name.capitalize()]))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(value) - 1))
            value = '"' + value[:at] + draw(st.sampled_from(["", "\\"])) + value[at:] + '"'
        return name + draw(_GAP) + "=" + draw(_GAP) + value

    params = [
        param(draw(st.sampled_from(["token", "macaroon"])), TOKEN),
        param("invoice", draw(st.sampled_from([INVOICE, INVOICE.upper()]))),
        *draw(st.lists(_UNKNOWN, max_size=2, unique_by=lambda text: text[0])),
    ]
    comma = draw(_GAP) + "," + draw(_GAP) + draw(st.sampled_from(["", ",", ", ,"]))
    joint = draw(st.sampled_from([comma, comma, " ", "\t "]))
    ours = (
        draw(st.sampled_from(["L402", "l402"]))
        + draw(st.sampled_from([" ", "  ", "\t"]))
        + joint.join(draw(st.permutations(params)))
    )
    lines = [*draw(st.lists(_FOREIGN, max_size=3)), ours, *draw(st.lists(_FOREIGN, max_size=2))]
    folds = draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    folded = [lines[0]]
    for line, fold in zip(lines[1:], folds, strict=False):
        if fold:
            folded[-1] += ", " + line
        else:
            folded.append(line)
    return folded


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(_written())
def test_order_quotes_case_blanks_and_folding_change_nothing(lines: list[str]) -> None:
    """If failing: whether a paywall can be paid depends on how a proxy or requests joined its header lines."""
    assert parse_challenge(lines) == parse_challenge(L402)
    assert parse_challenge(", ".join(lines)) == parse_challenge(L402)


_PIECES = st.sampled_from(
    [
        "L402",
        "LSAT",
        "l402 ",
        "token",
        "macaroon",
        "invoice",
        "=",
        '"',
        "\\",
        ",",
        " ",
        "\t",
        "Basic",
        TOKEN,
        INVOICE,
        "x",
        "é",
        "\r\n",
        "\0",
        ":",
    ]
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.lists(st.text(), max_size=4)
    | st.lists(_PIECES, max_size=25).map("".join)
    | st.lists(st.lists(_PIECES, max_size=12).map("".join), max_size=3)
    | st.binary().map(lambda raw: "L402 token=" + raw.decode("latin-1"))
)
@example("L402 =")
@example('L402 token="')
def test_any_header_is_an_offer_none_or_a_parse_error(lines: str | list[str]) -> None:
    """If failing: a server's odd header raises what no handler of requests' errors catches."""
    assert all(isinstance(name, str) for name in schemes_offered(lines))
    with contextlib.suppress(ChallengeParseError):
        read = parse_challenge(lines)
        assert read is None or (is_sendable(read.token) and read.invoice.amount_msat > 0)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([[LSAT, L402], [_OPAQUE], [f'Basic realm="a", {L402}'], [PAYMENT, L402]]),
    st.lists(st.tuples(st.integers(0, 10_000), _PIECES | st.text(max_size=2), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_a_doctored_offer_is_the_same_another_or_refused(lines: list[str], edits: list[tuple[int, str, int]]) -> None:
    """If failing: a header that was damaged on its way is paid with another token or amount than the server meant."""
    text = "\n".join(lines)
    for at, new, gone in edits:
        at %= len(text)
        text = text[:at] + new + text[at + gone :]
    with contextlib.suppress(ChallengeParseError):
        read = parse_challenge(text.split("\n"))
        if read is None:
            return
        assert is_sendable(read.token)
        assert (read.invoice.amount_msat, read.payment_hash) == (10_000, PAYMENT_HASH)


@pytest.mark.slow
def test_lines_apart_or_folded_are_the_same_list() -> None:
    """If failing: what is paid depends on whether urllib3 or requests handed over the header."""
    parts = ["Negotiate", PAYMENT, LSAT, 'Basic realm="x, y"', _OPAQUE]
    for order in itertools.permutations(parts):
        assert parse_challenge(list(order)) == parse_challenge(", ".join(order)) == parse_challenge(_OPAQUE)
