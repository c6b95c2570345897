"""``routeweiler-sync get``: one paid request, the node, budget, ledger and trace given by the environment.

Knows how curl takes a request, and how to say what became of it. What became of the money is read from the call's trace events,
so that what is said here is what the trace says.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import requests
import urllib3

from .._version import VERSION
from ..config import env_settings
from ..errors import FundingError, InvoicePaymentError, LedgerError, NoFundingForRailError, PaymentDeclinedError, RouteweilerError
from ..protocol.schemes import is_credential, redact
from .outcome import Exit, exit_for, printable
from .output import Output

if TYPE_CHECKING:
    from ..payments.types import Quote
    from ..trace.schema import TracePayment
    from ..transport.session import Routeweiler
    from .wiring import PaymentObserver, PriceCap

#: To connect, and for each silence of the server.
TIMEOUT_S = (30.0, 300.0)
#: For the wallet.
PAYMENT_TIMEOUT_S = 60.0
#: A dry run waits so long for a purchase that somebody else is making; it can't end one itself.
DRY_RUN_WAIT_S = 1.0


@dataclass(kw_only=True)
class Fetch:
    """What is known of the call: how it ended, and what the session's till and witness have seen."""

    url: str
    price_cap: PriceCap
    observer: PaymentObserver
    cap_sats: int | None
    no_node: str | None = None
    response: requests.Response | None = None
    error: requests.RequestException | None = None
    #: What else went wrong: that the trace couldn't be written.
    warnings: list[str] = field(default_factory=list)

    @property
    def exit(self) -> Exit:
        """The command's exit code."""
        paid = bool(self.observer.paid)
        if self.error is not None:
            return exit_for(self.error, paid=paid)
        if self.response is not None and self.response.status_code < 400:
            return Exit.OK
        return Exit.UNDELIVERED if paid else Exit.ERROR


@click.command()
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="Default: GET, or POST where there is data.")
@click.option("-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A header; 'NAME:' leaves one out.")
@click.option("-d", "--data", metavar="DATA|@FILE|-", multiple=True, help="The body: text, a file, stdin. Several: joined by '&'.")
@click.option("-o", "--output", metavar="FILE", help="Write the page to FILE, which only a complete page replaces.")
@click.option("--max-sats", type=click.IntRange(min=0), help="Spend at most so much, routing included. The budget holds besides.")
@click.option("--dry-run", is_flag=True, help="Tell the price, pay nothing. Needs no node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout: status, headers, body, payment, error.")
@click.pass_context
def get(
    context: click.Context,
    *,
    url: str,
    method: str | None,
    headers: Sequence[str],
    data: Sequence[str],
    output: str | None,
    max_sats: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch URL, and pay for it where it has to be paid for. Follows redirects.

    The page goes to stdout as it comes; what became of the money goes to stderr.

    \b
    The environment names the node (free pages need none):
      ROUTEWEILER_LNDCONNECT     lndconnect://...
      or LND_GRPC_HOST, LND_TLS_CERT_PATH, LND_MACAROON_PATH
      or POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON
    and further:
      ROUTEWEILER_NETWORK        bitcoin, bitcoin-testnet, bitcoin-signet or
                                 bitcoin-regtest; else the node is asked
      ROUTEWEILER_BUDGET         '1000 sat/call, 50000 sat/day', or none
      ROUTEWEILER_LEDGER, ROUTEWEILER_TRACE     where they are kept

    \b
    Exit codes:
      0  done                         4  the payment failed
      1  network error, HTTP >= 400   5  pending: call again, nothing is paid twice
      2  usage                        6  paid, but the page didn't come
      3  refused before paying
    """
    body = b"&".join(_data(each) for each in data) if data else None
    try:
        place = Output(output)
    except OSError as error:
        raise click.UsageError(f"{output} can't be written to: {error.strerror or error}. Nothing was fetched or paid.") from None
    with place:
        session, fetch = _session(url, max_sats=max_sats, dry_run=dry_run)
        with session:
            try:
                _fetch(fetch, session, method or ("GET" if body is None else "POST"), _headers(headers, body), body)
                code = _deliver(fetch, place, dry_run=dry_run, as_json=as_json)
            except KeyboardInterrupt:
                code = _interrupted(fetch)
    context.exit(code)


def _session(url: str, *, max_sats: int | None, dry_run: bool) -> tuple[Routeweiler, Fetch]:
    """A session of what the environment says, and the call that is to be made with it."""
    from ..transport.session import Routeweiler
    from .wiring import PaymentObserver, PriceCap, capped_node, prices_only

    cap_msat = None if max_sats is None else max_sats * 1000
    price_cap, observer = PriceCap(cap_msat=cap_msat, pays=not dry_run), PaymentObserver(env_settings.trace_sink())
    fetch = Fetch(url=url, price_cap=price_cap, observer=observer, cap_sats=max_sats)
    funding = []
    try:
        budget = env_settings.budget()
        funding = prices_only() if dry_run else capped_node(cap_msat)
    except FundingError as error:
        fetch.no_node = str(error)
    except ValueError as error:
        raise click.UsageError(printable(error)) from None
    session = Routeweiler(
        funding=funding,
        budget_envelope=budget,
        trace_sink=fetch.observer,
        confirm=fetch.price_cap,
        payment_timeout=DRY_RUN_WAIT_S if dry_run else PAYMENT_TIMEOUT_S,
    )
    session.headers["User-Agent"] = f"routeweiler-sync/{VERSION}"
    session.headers["Accept-Encoding"] = "identity"  # the body is wanted as it is
    return session, fetch


def _fetch(fetch: Fetch, session: Routeweiler, method: str, headers: dict[str, Any], body: bytes | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            fetch.response = session.request(method, fetch.url, headers=headers, data=body, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            fetch.error, fetch.response = error, error.response
    fetch.warnings = [str(each.message) for each in caught]


def _deliver(fetch: Fetch, place: Output, *, dry_run: bool, as_json: bool) -> Exit:
    """Say what became of the call, and put its page where it is wanted."""
    quoted = dry_run and isinstance(fetch.error, PaymentDeclinedError)
    content = None
    if not quoted:
        _say(fetch)
        try:
            content = _page(fetch, place, as_json)
        except BrokenPipeError:
            raise  # the reader of stdout has had enough
        except (urllib3.exceptions.HTTPError, OSError) as problem:
            fetch.error = requests.ConnectionError(f"The page didn't arrive whole: {problem}.")
            _err(fetch.error)
    if as_json:
        click.echo(json.dumps(_as_json(fetch, content, quoted)))
    elif quoted and fetch.price_cap.quote is not None:
        click.echo(_as_text(fetch.price_cap.quote))
    return Exit.OK if quoted else fetch.exit


def _page(fetch: Fetch, place: Output, as_json: bool) -> bytes | None:
    """Write the page to its place, or return it for the JSON. An error's page goes into no file."""
    response = fetch.response
    if response is None or fetch.error is not None:
        return None
    response.raw.enforce_content_length = True  # unless told to count, urllib3 1.26 takes half a page for a whole one
    if as_json and not place.is_file:
        return response.content
    if not place.is_file or response.status_code < 400:
        place.write(response)
    return None


def _interrupted(fetch: Fetch) -> Exit:
    if fetch.observer.paid:
        _err(f"Interrupted; {_told(fetch.observer.paid)}. The token is kept, and the next call uses it.")
        return Exit.UNDELIVERED
    if fetch.price_cap.agreed or _is_unfinished():
        _err("Interrupted while paying; the node may pay on. Call again: the same purchase goes on, nothing is paid twice.")
        return Exit.PENDING
    raise click.Abort


def _is_unfinished() -> bool:
    """Whether the ledger holds a purchase, maybe an earlier run's, that was being carried to its end."""
    from ..ledger.ledger import Ledger

    with contextlib.suppress(LedgerError), contextlib.closing(Ledger.open(env_settings.ledger_url())) as ledger:
        return ledger.exists() and bool(ledger.unfinished())
    return False


# What is said


def _say(fetch: Fetch) -> None:
    """On stderr: what became of the money, and what went wrong."""
    if fetch.error is None:
        assert fetch.response is not None
        status = f"HTTP {fetch.response.status_code} {fetch.response.reason or ''}".rstrip()
        _err(f"{status}; {_told(fetch.observer.payments) or _told_unpaid(fetch.response)}")
    else:
        if fetch.observer.paid:
            _err(_told(fetch.observer.paid))
        _err(_problem(fetch))
    for warning in fetch.warnings:
        _err(warning)


def _problem(fetch: Fetch) -> str:
    """What went wrong, in this command's words where they help more than the library's."""
    error, quote, cap_sats = fetch.error, fetch.price_cap.quote, fetch.cap_sats
    if isinstance(error, NoFundingForRailError) and fetch.no_node is not None:
        return f"The server wants to be paid, and there is no node to pay with: {fetch.no_node}"
    if isinstance(error, PaymentDeclinedError) and quote is not None and cap_sats is not None:
        from .._core.money import sats

        return f"The page costs {sats(quote.amount_msat)}, more than --max-sats {cap_sats} allows. Nothing was spent for it."
    if isinstance(error, InvoicePaymentError) and cap_sats is not None:
        return f"{error} --max-sats {cap_sats} bounds the routing fee as well."
    return str(error)


def _told_unpaid(response: requests.Response) -> str:
    """A token of the server's goes along to its other pages as a guess: whether they need one isn't known."""
    carried = is_credential(str(response.request.headers.get("Authorization", "")))
    return "nothing paid: a token that was paid for earlier went along" if carried else "free"


def _told(payments: Sequence[TracePayment]) -> str:
    """``paid 10 sat + 1 sat fee, payment hash …`` for each."""
    from .._core.money import sats

    def told(payment: TracePayment) -> str:
        price = f"{sats(payment.amount_msat)} + {sats(payment.fee_msat)} fee"
        if payment.reused:
            return f"nothing paid: token of payment {payment.payment_hash} used again ({price}, paid earlier)"
        return f"paid {price}, payment hash {payment.payment_hash}"

    return "; ".join(told(payment) for payment in payments)


def _as_text(quote: Quote) -> str:
    from .._core.money import sats

    return "\n".join(
        f"{name:<13} {printable(value)}"
        for name, value in {
            "price": sats(quote.amount_msat),
            "routing": f"at most {sats(quote.max_fee_msat)}",
            "budget": f"{quote.amount_minor_units.normalize():f} {quote.currency}, before routing",
            "for": quote.scope,
            "says": quote.description or "(nothing)",
            "payment hash": quote.payment_hash,
            "expires": f"{quote.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            "paid": "nothing: this was a dry run",
        }.items()
    )


def _as_json(fetch: Fetch, content: bytes | None, quoted: bool) -> dict[str, Any]:
    """The whole outcome. ``body`` is text where it is UTF-8, else base64, as ``bodyEncoding`` tells; tokens are redacted."""
    response, error, payments, quote = fetch.response, fetch.error, fetch.observer.payments, fetch.price_cap.quote
    body, encoding = _text_or_base64(content)
    return {
        "url": fetch.url if response is None else response.url,
        "status": None if response is None else response.status_code,
        "headers": None if response is None else {name: redact(value) for name, value in response.headers.items()},
        "body": body,
        "bodyEncoding": encoding,
        "payment": None
        if not payments
        else {
            "paymentHash": payments[-1].payment_hash,
            "amountMsat": payments[-1].amount_msat,
            "feeMsat": payments[-1].fee_msat,
            "reused": payments[-1].reused,
        },
        "spentMsat": fetch.observer.spent_msat,
        "quote": None
        if quote is None
        else {
            "amountMsat": quote.amount_msat,
            "maxFeeMsat": quote.max_fee_msat,
            "amountMinorUnits": f"{quote.amount_minor_units.normalize():f}",
            "currency": quote.currency,
            "scope": quote.scope,
            "paymentHash": quote.payment_hash,
            "description": quote.description,
            "expiresAt": quote.expires_at.isoformat(),
        },
        "error": None
        if error is None or quoted
        else {
            "code": error.code if isinstance(error, RouteweilerError) else type(error).__name__,
            "message": redact(_problem(fetch)),
            "spent": error.spent if isinstance(error, RouteweilerError) else bool(fetch.observer.paid),
        },
    }


def _text_or_base64(content: bytes | None) -> tuple[str | None, str | None]:
    if content is None:
        return None, None
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(content).decode("ascii"), "base64"


def _err(text: object) -> None:
    click.echo(printable(text), err=True)


# How curl takes a request


def _data(given: str) -> bytes:
    """``-d``'s bytes, unchanged: kept in memory, for a paid request is sent twice."""
    if given == "-" or given == "@-":
        return sys.stdin.buffer.read()
    if not given.startswith("@"):
        return os.fsencode(given)
    try:
        with open(given[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise click.UsageError(f"{given[1:]} can't be read: {error.strerror}. Nothing was fetched or paid.") from None


def _headers(given: Sequence[str], body: bytes | None) -> dict[str, str | bytes | None]:
    """``-H``'s headers, with curl's Content-Type for data. None leaves a header of the session's own out."""
    headers: dict[str, str | bytes | None] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"a header is 'NAME: VALUE', not {each!r}")
        value = value.strip()
        headers[name.strip()] = None if not value else value if value.isascii() else os.fsencode(value)
    if body is not None and "content-type" not in {name.lower() for name in headers}:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    return headers
