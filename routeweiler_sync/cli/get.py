"""``routeweiler-sync get``: fetch one URL, and pay for it if the server asks for payment.

The environment names node, budget, ledger and trace. This module knows curl's arguments for a request, and how to report the
outcome. What it reports about money is read from the call's trace events, so the command and the trace agree. What is passed to the
session is made in `wiring`; where the page is written is left to `output`, and the exit code to `outcome`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import requests
import urllib3

from .._core.secret_text import shown
from .._version import VERSION
from ..config import env_settings, environment
from ..errors import FundingError, InvoicePaymentError, LedgerError, NoFundingForRailError, PaymentDeclinedError, RouteweilerError
from ..protocol.schemes import is_credential, redact
from .outcome import Exit, exit_for, printable, text_of
from .output import Output

if TYPE_CHECKING:
    from ..payments.types import Quote
    from ..trace.schema import TracePayment
    from ..transport.session import Routeweiler
    from .wiring import Confirm, PaymentObserver

#: Seconds to wait for the connection, and for each part of the answer (requests' connect and read timeouts).
TIMEOUT_S = (30.0, 300.0)
#: Seconds to wait for the outcome of a payment.
PAYMENT_TIMEOUT_S = 60.0
#: Seconds that a dry run waits for another process's purchase of the same token; it can't finish one itself.
DRY_RUN_WAIT_S = 1.0


@dataclass(kw_only=True)
class Fetch:
    """One run of the command: the URL, the limits, what was paid, and how the call ended.

    ``confirm`` and ``observer`` hold the last quote and the payments that the session has made. ``limit`` is the limit of
    ``--max-sats``, in whose block the call is made; ``cap_sats`` is its number. ``no_node`` is why the environment's node can't be
    used, None if it can. ``response`` or ``error`` is set once the call has ended, both if the error has a response.
    """

    url: str
    confirm: Confirm
    observer: PaymentObserver
    cap_sats: int | None
    limit: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    no_node: str | None = None
    response: requests.Response | None = None
    error: requests.RequestException | None = None
    #: What went wrong besides, for instance that the trace couldn't be written.
    warnings: list[str] = field(default_factory=list)

    @property
    def exit(self) -> Exit:
        """The command's exit code. HTTP 400 and above counts as an error."""
        paid = bool(self.observer.paid)
        if self.error is not None:
            return exit_for(self.error, paid=paid)
        if self.response is not None and self.response.status_code < 400:
            return Exit.OK
        return Exit.UNDELIVERED if paid else Exit.ERROR


@click.command()
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="HTTP method. Default: GET, or POST with -d.")
@click.option(
    "-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="Send a header; 'NAME:' omits a default one."
)
@click.option(
    "-d", "--data", metavar="DATA|@FILE|-", multiple=True, help="Send a body: text, file, stdin. Several are joined by '&'."
)
@click.option("-o", "--output", metavar="FILE", help="Write the page to FILE. Only a complete page replaces an existing FILE.")
@click.option(
    "--max-sats",
    type=click.IntRange(min=0),
    help="Limit what the command may spend, over all redirects, routing included. The budget applies too.",
)
@click.option("--dry-run", is_flag=True, help="Print the price and pay nothing. Needs no node.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: status, headers, body, payment, error.")
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
    """Fetch URL, and pay for it if the server asks for payment. Follows redirects.

    The page is written to stdout as it arrives. What was paid is reported on stderr.

    \b
    These environment variables name the node (free pages need none):
      ROUTEWEILER_LNDCONNECT     lndconnect://...
      or LND_GRPC_HOST, LND_TLS_CERT_PATH, LND_MACAROON_PATH
      or POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON
    Further variables:
      ROUTEWEILER_NETWORK        bitcoin, bitcoin-testnet, bitcoin-signet or
                                 bitcoin-regtest; default: the node is asked
      ROUTEWEILER_BUDGET         '1000 sat/call, 50000 sat/day', or 'none'
      ROUTEWEILER_LEDGER         path or URL of the ledger
      ROUTEWEILER_TRACE          path of the trace

    \b
    Exit codes:
      0  done                         4  the payment failed, nothing was spent
      1  network error, HTTP >= 400   5  pending: call again, nothing is paid twice
      2  wrong usage                  6  paid, but the page didn't arrive
      3  refused before paying
    """
    body = b"&".join(_data(each) for each in data) if data else None
    try:
        destination = Output(output)
    except OSError as error:
        raise click.UsageError(f"{output} can't be written to: {error.strerror or error}. Nothing was fetched or paid.") from None
    with destination:
        session, fetch = _session(url, max_sats=max_sats, dry_run=dry_run)
        with session:
            try:
                _fetch(fetch, session, method or ("GET" if body is None else "POST"), _headers(headers, body), body)
                code = _deliver(fetch, destination, dry_run=dry_run, as_json=as_json)
            except KeyboardInterrupt:
                code = _interrupted(fetch)
    context.exit(code)


def _session(url: str, *, max_sats: int | None, dry_run: bool) -> tuple[Routeweiler, Fetch]:
    """Return a session that is configured by the environment, and the record of the call that it is to make.

    Without a usable node the session is made all the same: a free page needs none.

    Raises: click.UsageError if the budget or the network in the environment can't be read.
    """
    from ..transport.session import Routeweiler
    from .wiring import Confirm, PaymentObserver, dry_limit, limit_of, prices_only

    confirm = Confirm(pays=not dry_run, limit=dry_limit(max_sats) if dry_run and max_sats is not None else None)
    fetch = Fetch(url=url, confirm=confirm, observer=PaymentObserver(env_settings.trace_sink()), cap_sats=max_sats)
    funding = []
    try:
        budget = env_settings.budget()
        funding = prices_only() if dry_run else environment.node()
    except FundingError as error:
        fetch.no_node = text_of(error)
    except ValueError as error:
        raise click.UsageError(printable(error)) from None
    session = Routeweiler(
        funding=funding,
        budget_envelope=budget,
        trace_sink=fetch.observer,
        confirm=fetch.confirm,
        payment_timeout=DRY_RUN_WAIT_S if dry_run else PAYMENT_TIMEOUT_S,
    )
    if max_sats is not None and not dry_run:
        fetch.limit = limit_of(session, max_sats)
    session.headers["User-Agent"] = f"routeweiler-sync/{VERSION}"
    session.headers["Accept-Encoding"] = "identity"  # the page is written as the server has it, never decompressed
    return session, fetch


def _fetch(fetch: Fetch, session: Routeweiler, method: str, headers: dict[str, Any], body: bytes | None) -> None:
    """Make the request, and record in ``fetch`` its response or error, and RuntimeWarnings. The body of the page stays unread."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            with fetch.limit:
                fetch.response = session.request(method, fetch.url, headers=headers, data=body, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            fetch.error, fetch.response = error, error.response
    fetch.warnings = [str(each.message) for each in caught]


def _deliver(fetch: Fetch, destination: Output, *, dry_run: bool, as_json: bool) -> Exit:
    """Report the outcome, write the page, and return the exit code."""
    quoted = dry_run and isinstance(fetch.error, PaymentDeclinedError)
    content = None
    if not quoted:
        _report(fetch)
        try:
            content = _page(fetch, destination, as_json)
        except BrokenPipeError:
            raise  # whatever reads stdout has closed it: click ends the command quietly
        except (urllib3.exceptions.HTTPError, OSError) as problem:
            fetch.error = requests.ConnectionError(f"The page didn't arrive whole: {problem}.")
            _err(fetch.error)
    if as_json:
        click.echo(json.dumps(_as_json(fetch, content, quoted)))
    elif dry_run and fetch.confirm.quote is not None:
        click.echo(_as_text(fetch.confirm.quote))
    return Exit.OK if quoted else fetch.exit


def _page(fetch: Fetch, destination: Output, as_json: bool) -> bytes | None:
    """Write the page to ``destination``, or return it for the JSON. The page of an HTTP error is never written to a file."""
    response = fetch.response
    if response is None or fetch.error is not None:
        return None
    response.raw.enforce_content_length = True  # not the default in urllib3 1.26, which accepts half a page as a whole one
    if as_json and not destination.is_file:
        return response.content
    if not destination.is_file or response.status_code < 400:
        destination.write(response)
    return None


def _interrupted(fetch: Fetch) -> Exit:
    """Report what Ctrl-C may have left behind, and return the exit code. Raises: click.Abort if no money can be involved."""
    if fetch.observer.paid:
        _err(f"Interrupted; {_payments_text(fetch.observer.paid)}. The token is kept, and the next call uses it.")
        return Exit.UNDELIVERED
    if fetch.confirm.agreed or _is_unfinished():
        again = "Call again: the same purchase continues, nothing is paid twice. Or run routeweiler-sync payments recover."
        _err(f"Interrupted while paying; the node may still pay. {again}")
        return Exit.PENDING
    raise click.Abort


def _is_unfinished() -> bool:
    """Return whether the ledger holds an unfinished purchase, of this run or an earlier one. False if the ledger can't be read."""
    from ..ledger.ledger import Ledger

    with contextlib.suppress(LedgerError), contextlib.closing(Ledger.open(env_settings.ledger_url())) as ledger:
        return ledger.exists() and bool(ledger.unfinished())
    return False


# Messages


def _report(fetch: Fetch) -> None:
    """Write to stderr what was paid, what went wrong, and the warnings."""
    if fetch.error is None:
        assert fetch.response is not None
        status = f"HTTP {fetch.response.status_code} {fetch.response.reason or ''}".rstrip()
        _err(f"{status}; {_payments_text(fetch.observer.payments) or _unpaid_text(fetch.response)}")
    else:
        if fetch.observer.paid:
            _err(_payments_text(fetch.observer.paid))
        _err(_problem(fetch))
    for warning in fetch.warnings:
        _err(warning)


def _problem(fetch: Fetch) -> str:
    """Return what went wrong: in terms of the command's options where those explain it, else the text of the error."""
    error, cap_sats = fetch.error, fetch.cap_sats
    if error is None:
        return ""
    if isinstance(error, NoFundingForRailError) and fetch.no_node is not None:
        return f"The server asks for payment, and there is no node to pay with: {fetch.no_node}"
    if isinstance(error, InvoicePaymentError) and cap_sats is not None:
        return f"{text_of(error)} --max-sats {cap_sats} limits the routing fee as well."
    return text_of(error)


def _unpaid_text(response: requests.Response) -> str:
    """Return the report on a call without a payment.

    It isn't always "free": a stored token of the origin is sent with requests for other pages as a guess, and the answer doesn't
    show whether the page needed it.
    """
    had_token = is_credential(str(response.request.headers.get("Authorization", "")))
    return "nothing paid: a token that was paid for earlier was sent along" if had_token else "free"


def _payments_text(payments: Sequence[TracePayment]) -> str:
    """Return ``paid 10 sat + 1 sat fee, payment hash …`` or ``nothing paid: token … used again`` for each payment, or ""."""
    from .._core.money import sats

    def text(payment: TracePayment) -> str:
        price = f"{sats(payment.amount_msat)} + {sats(payment.fee_msat)} fee"
        if payment.reused:
            return f"nothing paid: token of payment {payment.payment_hash} used again ({price}, paid earlier)"
        return f"paid {price}, payment hash {payment.payment_hash}"

    return "; ".join(text(payment) for payment in payments)


def _as_text(quote: Quote) -> str:
    """Return the output of ``--dry-run`` for people: one property of the quote a line."""
    from .._core.money import plain, sats

    return "\n".join(
        f"{name:<13} {printable(value)}"
        for name, value in {
            "price": sats(quote.amount_msat),
            "routing": f"at most {sats(quote.max_fee_msat)}",
            "budget": f"{plain(quote.amount_minor_units)} {quote.currency}, before routing",
            "token for": quote.scope,
            "description": quote.description or "(none)",
            "payment hash": quote.payment_hash,
            "expires": f"{quote.expires_at:%Y-%m-%d %H:%M:%S} UTC",
            "paid": "nothing: this was a dry run",
        }.items()
    )


def _as_json(fetch: Fetch, content: bytes | None, quoted: bool) -> dict[str, Any]:
    """Return the output of ``--json``: the whole outcome. Tokens are redacted.

    ``body`` is text if ``content`` is UTF-8, else base64; ``bodyEncoding`` names which of the two. ``quoted``: this was a dry run
    that ended with a price, so its PaymentDeclinedError isn't reported as an error.
    """
    from .._core.money import plain
    from .._core.urls import without_userinfo, without_userinfos
    from ..paywall.credentialed import tokens_offered
    from ..protocol.token_search import holds_token, without_tokens

    response, error, payments, quote = fetch.response, fetch.error, fetch.observer.payments, fetch.confirm.quote
    tokens = frozenset() if response is None else tokens_offered(response).union(*map(tokens_offered, response.history))
    if response is not None and response.status_code in (401, 402) and content is not None and holds_token(content, tokens):
        content = b""  # it isn't a page: it repeats the offer
    body, encoding = _text_or_base64(content)
    return {
        "url": without_userinfo(fetch.url if response is None else response.url),
        "status": None if response is None else response.status_code,
        "headers": None
        if response is None
        else {name: without_userinfos(without_tokens(value, tokens)) for name, value in response.headers.items()},
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
            "amountMinorUnits": plain(quote.amount_minor_units),
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
            "message": without_userinfos(redact(_problem(fetch))),
            "spent": error.spent if isinstance(error, RouteweilerError) else bool(fetch.observer.paid),
        },
    }


def _text_or_base64(content: bytes | None) -> tuple[str | None, str | None]:
    """Return ``content`` as a string, and its encoding: ``utf-8`` or ``base64``."""
    if content is None:
        return None, None
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(content).decode("ascii"), "base64"


def _err(text: object) -> None:
    """Write one line to stderr, with credentials removed and control characters escaped."""
    click.echo(printable(text), err=True)


# Arguments of the request, as curl reads them


def _data(given: str) -> bytes:
    """Return the bytes of one ``-d``, unchanged. They are kept in memory because a paid request is sent twice.

    Raises: click.UsageError if the file can't be read.
    """
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
    """Return the headers of ``-H``, with curl's Content-Type if there is a body. The value None removes a default header.

    Raises: click.UsageError for a header without a colon or a name.
    """
    headers: dict[str, str | bytes | None] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"a header is 'NAME: VALUE', not {shown(each)}")
        value = value.strip()
        headers[name.strip()] = None if not value else value if value.isascii() else os.fsencode(value)
    if body is not None and "content-type" not in {name.lower() for name in headers}:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    return headers
