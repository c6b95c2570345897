"""``routeweiler-sync get``: fetch one URL, and pay for it if the server asks for payment.

The environment names node, budget, ledger and trace. This module knows curl's arguments for a request, and how to report the
outcome. What it reports about money is read from the call's trace events, so the command and the trace agree. What is passed to the
session is made in `wiring`; where the page is written is left to `output`, a dry run to `dry_run`, and the exit code to `outcome`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import click
import requests
import urllib3

from .._core import env_vars
from .._core.credential_headers import CREDENTIAL_HEADERS
from .._core.secret_text import shown
from .._version import VERSION
from ..config import env_settings, environment
from ..errors import FundingError, InvoicePaymentError, LedgerError, NoFundingForRailError, RouteweilerError
from ..payments import slow_payments
from ..protocol.http_auth import is_name
from ..protocol.schemes import is_credential, is_reusable, redact
from . import tables
from .dry_run import DryRun, dry_run as dry_run_of, facts, quote_as_json, verdict_as_json
from .outcome import Exit, exit_for, printable, text_of
from .output import Output, output_at, uninterrupted
from .progress import progress_bar

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow
    from ..trace.schema import TracePayment
    from ..transport.session import Routeweiler
    from .wiring import Confirm, PaymentObserver

#: Seconds to wait for the connection, and for each part of the answer (requests' connect and read timeouts).
TIMEOUT_S = (30.0, 300.0)
#: Seconds to wait for the outcome of a payment.
PAYMENT_TIMEOUT_S = 60.0
#: Seconds that a dry run waits for another process's purchase of the same token; it can't finish one itself.
DRY_RUN_WAIT_S = 1.0
#: Told where the page of a payment didn't arrive, or not whole.
_KEPT = "The token is kept, and the next call uses it."
#: The same of a charge, whose credential opens one request, once: while it is owed, and once the server has answered.
_OWED = "The payment is kept, and the next call for the same request presents it."
_USED_UP = "The payment was for this one answer: the next call pays anew."
#: Told where certificates aren't checked.
INSECURE = "--insecure: the certificate isn't checked. Whoever answers in the server's place gets what is paid, and the token."


@dataclass(kw_only=True)
class Fetch:
    """One run of the command: the request, the limits, what was paid, and how the call ended.

    ``confirm`` and ``observer`` hold the last quote and the payments that the session has made. ``limit`` is the limit of
    ``--max-sats``, in whose block the call is made; ``cap_sats`` is its number. ``no_node`` is why the environment's node can't be
    used, None if it can. ``response`` or ``error`` is set once the call has ended, both if the error has a response.
    """

    method: str
    url: str
    headers: dict[str, Any]
    body: bytes | None
    output: str | None
    verify: bool | None
    quiet: bool
    confirm: Confirm
    observer: PaymentObserver
    cap_sats: int | None
    limit: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    no_node: str | None = None
    #: Whether the call presented what an earlier one had paid for this very request, and paid nothing itself.
    presented: bool = False
    response: requests.Response | None = None
    error: requests.RequestException | None = None
    #: Whether the file had the whole page already, so that the server had nothing more to send.
    had_all: bool = False
    #: What went wrong besides, for instance that the trace couldn't be written.
    warnings: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for ``session.request``, but for method, URL and headers."""
        return {"data": self.body, "timeout": TIMEOUT_S, "verify": self.verify}

    @property
    def exit(self) -> Exit:
        """The command's exit code. HTTP 400 and above counts as an error."""
        paid = bool(self.observer.paid) or self.presented
        if self.error is not None:
            return exit_for(self.error, paid=paid)
        if self.response is not None and (self.response.status_code < 400 or self.had_all):
            return Exit.OK
        return Exit.UNDELIVERED if paid else Exit.ERROR


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP came, which ends the command as Ctrl-C does. ``signum`` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@click.command(short_help="Fetch one URL, and pay for it if asked.")
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="HTTP method. Default: GET, or POST with -d.")
@click.option(
    "-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="Send a header; 'NAME:' omits a default one."
)
@click.option(
    "-d", "--data", metavar="DATA|@FILE|-", multiple=True, help="Send a body: text, file, stdin. Several are joined by '&'."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE",
    help="Write the page to FILE, with a progress bar. Only a whole page replaces a FILE.",
)
@click.option(
    "-C",
    "continue_at",
    type=click.Choice(["-"]),
    metavar="-",
    help="As --continue: curl's way to write it.",
)
@click.option(
    "--continue",
    "continues",
    is_flag=True,
    help="Continue a download to FILE that broke off, and keep what has arrived if this one does. "
    "If the page has changed, or the server can't continue, it begins anew.",
)
@click.option(
    "--max-sats",
    type=click.IntRange(min=0),
    metavar="N",
    help="Limit what the command may spend, over all redirects, routing included. The budget applies too.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be paid from which budget, or why not. Pays nothing, sends no token, needs no node.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: status, headers, body, payment, error.")
@click.option("-k", "--insecure", is_flag=True, help="Don't check the server's certificate.")
@click.option("-q", "--quiet", is_flag=True, help="Write nothing to stderr unless something goes wrong. No progress bar.")
@click.option("-v", "--verbose", is_flag=True, help="Write each request, answer and step of a payment to stderr. No secrets.")
@click.pass_context
def get(
    context: click.Context,
    *,
    url: str,
    method: str | None,
    headers: Sequence[str],
    data: Sequence[str],
    output: str | None,
    continue_at: str | None,
    continues: bool,
    max_sats: int | None,
    dry_run: bool,
    as_json: bool,
    insecure: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Fetch URL, and pay for it if the server asks for payment. Follows redirects.

    The page is written to stdout as it arrives, or to a file. What was paid is reported on stderr.

    \b
    Examples:
      What would it cost?
        routeweiler-sync get --dry-run https://example.com/weather
      Pay at most 20 sat, routing included:
        routeweiler-sync get --max-sats 20 -o w.json https://example.com/weather
      Go on where a download has broken off:
        routeweiler-sync get --continue -o a.zip https://example.com/a.zip
      Post JSON:
        routeweiler-sync get -H 'Content-Type: application/json' \\
          -d @body.json https://example.com/ask

    \b
    These environment variables name the wallet (free pages need none):
      ROUTEWEILER_LNDCONNECT     lndconnect://...
      or LND_GRPC_HOST, LND_TLS_CERT_PATH, LND_MACAROON_PATH
         (or LND_TLS_CERT_HEX, LND_MACAROON_HEX)
      or POLAR_LND_HOST, POLAR_LND_TLS_CERT, POLAR_LND_MACAROON
      or LND_REST_URL with certificate and macaroon as above
      or LNBITS_URL, LNBITS_ADMIN_KEY
      or NWC_URL                 nostr+walletconnect://...
    Further variables:
      ROUTEWEILER_WALLET         which, if several are named: lnd, lnd-rest,
                                 lnbits or nwc
      ROUTEWEILER_NETWORK        bitcoin, bitcoin-testnet, bitcoin-signet or
                                 bitcoin-regtest; default: the wallet is asked
      ROUTEWEILER_BUDGET         '1000 sat/call, 50000 sat/day', or 'none'
      ROUTEWEILER_ENVELOPE       or the id of a budget in the ledger
      ROUTEWEILER_AGENT          the agent whose payments they are
      ROUTEWEILER_LEDGER         path or URL of the ledger
      ROUTEWEILER_TRACE          path of the trace
      ROUTEWEILER_ALLOW_HTTP_PAYMENT
                                 1: pay by the Payment scheme over plain http too
      ROUTEWEILER_ALLOW_HTTP_WALLET
                                 1: reach a wallet over plain http or ws too

    \b
    Exit codes:
      0  done                        4  the payment failed, nothing was spent
      1  network or HTTP error       5  pending: call again, none is paid twice
      2  wrong usage                 6  paid, but the page didn't arrive
      3  refused before paying
    """
    continues = continues or continue_at is not None
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    if continues and (method not in (None, "GET") or data or any(each.lower().startswith("range:") for each in headers)):
        raise click.UsageError("-C continues a plain GET: it can't be used with -X, -d or a Range header.")
    if method and not is_name(method):
        raise click.UsageError(f"a method is a word such as PUT, not {shown(method)}")
    if output is not None and not dry_run and (owner := _owner_of(output)) is not None:
        raise click.UsageError(f"{output} can't be written to: it is the {owner}. Nothing was fetched or paid.")
    body = b"&".join(_data(each) for each in data) if data else None
    try:
        destination = Output() if dry_run else output_at(output, continues=url if continues else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with _terminable(), contextlib.ExitStack() as stack:
        try:
            try:
                stack.enter_context(destination)
            except OSError as error:
                why = error.strerror or error
                raise click.UsageError(f"{output or 'stdout'} can't be written to: {why}. Nothing was fetched or paid.") from None
            session, fetch = _session(url, max_sats=max_sats, dry_run=dry_run)
            fetch.method, fetch.headers, fetch.body = method or ("GET" if body is None else "POST"), _headers(headers, body), body
            fetch.output, fetch.verify, fetch.quiet = output, False if insecure else None, quiet
            _prepare_terminal(session, quiet=quiet, verbose=verbose, insecure=insecure)
            stack.enter_context(session)
        except TerminatedError as error:
            context.exit(128 + error.signum)
        code = _run(fetch, session, destination, dry_run=dry_run, as_json=as_json)
        with contextlib.suppress(KeyboardInterrupt), uninterrupted():  # the outcome is told, and stays what it is
            stack.close()
    context.exit(code)


def _run(fetch: Fetch, session: Routeweiler, destination: Output, *, dry_run: bool, as_json: bool) -> int:
    """Make the call, report its outcome, and return the exit code."""
    try:
        if dry_run:
            return _rehearse(fetch, session, as_json=as_json)
        _fetch(fetch, session, destination)
        return _deliver(fetch, destination, as_json=as_json)
    except KeyboardInterrupt as interrupt:
        return fetch.exit if destination.is_whole else _interrupted(fetch, destination, interrupt)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """End the block by `TerminatedError` on SIGTERM and SIGHUP, so that no file is left behind and the money is told of."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = []
    for signum in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if signum is not None and signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, _raise_terminated)
            replaced.append(signum)
    try:
        yield
    finally:
        for signum in replaced:
            signal.signal(signum, signal.SIG_DFL)


def _raise_terminated(signum: int, frame: object) -> NoReturn:
    raise TerminatedError(signum)


def _session(url: str, *, max_sats: int | None, dry_run: bool) -> tuple[Routeweiler, Fetch]:
    """Return a session that is configured by the environment, and the record of the call that it is to make.

    Without a usable node the session is made all the same: a free page needs none.

    Raises: click.UsageError if the budget or the network in the environment can't be read.
    """
    from ..transport.session import Routeweiler
    from .wiring import Confirm, PaymentObserver, limit_of, prices_only

    fetch = Fetch(
        method="GET",
        url=url,
        headers={},
        body=None,
        output=None,
        verify=None,
        quiet=False,
        confirm=Confirm(),
        observer=PaymentObserver(env_settings.trace_sink()),
        cap_sats=max_sats,
    )
    funding = []
    try:
        budget, agent_id = env_settings.budget(), env_settings.agent_id()
        try:
            funding = environment.node()
        except FundingError as error:
            fetch.no_node = text_of(error)
        if dry_run:
            funding = prices_only()
    except ValueError as error:
        raise click.UsageError(printable(error)) from None
    session = Routeweiler(
        funding=funding,
        budget_envelope=budget,
        agent_id=agent_id,
        trace_sink=fetch.observer,
        confirm=fetch.confirm,
        payment_timeout=DRY_RUN_WAIT_S if dry_run else PAYMENT_TIMEOUT_S,
    )
    if max_sats is not None:
        fetch.limit = limit_of(session, max_sats)
    session.headers["User-Agent"] = f"routeweiler-sync/{VERSION}"
    session.headers["Accept-Encoding"] = "identity"  # the page is written as the server has it, never decompressed
    return session, fetch


def _prepare_terminal(session: Routeweiler, *, quiet: bool, verbose: bool, insecure: bool) -> None:
    """Let stderr show what the options ask for."""
    if insecure:
        warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)  # told here, once
        _err(INSECURE)
    if verbose:
        from .verbose import tell

        tell(session, session._payer, _err)
    elif not quiet and sys.stderr is not None and sys.stderr.isatty():
        slow_payments.listeners.append(_err)


def _fetch(fetch: Fetch, session: Routeweiler, destination: Output) -> None:
    """Make the request, and record in ``fetch`` its response or error, and RuntimeWarnings. The body of the page stays unread."""
    with warnings.catch_warnings(record=True) as caught, fetch.limit:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            fetch.response = _request(fetch, session, destination)
            if not destination.takes(fetch.response):
                fetch.response.close()
                fetch.response = _request(fetch, session, destination)
        except requests.RequestException as error:
            fetch.error, fetch.response = error, error.response
    fetch.presented = not fetch.observer.paid and bool(fetch.observer.payments) and _is_charge(fetch)
    fetch.warnings = [str(each.message) for each in caught]
    if fetch.error is None and fetch.response is not None:
        fetch.had_all = fetch.response.status_code == 416 and destination.kept_bytes > 0


def _request(fetch: Fetch, session: Routeweiler, destination: Output) -> requests.Response:
    headers = {**fetch.headers, **destination.headers}
    return session.request(fetch.method, fetch.url, headers=headers, stream=True, **fetch.arguments)


def _rehearse(fetch: Fetch, session: Routeweiler, *, as_json: bool) -> Exit:
    """Report what the call would pay, and return the exit code that it would have."""
    with fetch.limit:
        result = dry_run_of(session, fetch.method, fetch.url, no_node=fetch.no_node, headers=fetch.headers, **fetch.arguments)
    fetch.response, fetch.error = result.response, result.problem
    problem = result.problem
    if problem is not None:
        _err(_problem(fetch))
    elif result.rehearsal is None and not fetch.quiet:
        _report(fetch)
    if as_json:
        click.echo(json.dumps(_as_json(fetch, None, result)))
    else:
        tables.print_facts(facts(result))
    return result.exit


def _deliver(fetch: Fetch, destination: Output, *, as_json: bool) -> Exit:
    """Report the outcome, write the page, and return the exit code."""
    _report(fetch)
    content = None
    with _delivering(fetch, destination):
        content = _page(fetch, destination, as_json)
    if as_json:
        with _delivering(fetch, destination):
            click.echo(json.dumps(_as_json(fetch, content)))
    return fetch.exit


@contextlib.contextmanager
def _delivering(fetch: Fetch, destination: Output) -> Iterator[None]:
    """Say on stderr, and note in ``fetch.error``, what keeps the page from being written whole in the block."""
    try:
        yield
    except BrokenPipeError:
        raise  # whatever reads stdout has closed it: click ends the command quietly
    except (urllib3.exceptions.HTTPError, OSError) as problem:
        fetch.error = _undelivered(fetch, destination, problem)
        if fetch.quiet and fetch.observer.paid:
            _err(_payments_text(fetch.observer.paid))
        _err(fetch.error)


def _undelivered(fetch: Fetch, destination: Output, problem: Exception) -> requests.RequestException:
    """Return the error for a page that ``problem`` kept from being written whole, with what that means."""
    why = getattr(problem, "strerror", None) or problem
    is_disk = isinstance(problem, OSError) and problem.errno is not None
    place = "stdout" if fetch.output in (None, "-") else fetch.output
    text = f"The page couldn't be written to {place}: {why}." if is_disk else f"The page didn't arrive whole: {why}."
    if fetch.observer.paid or fetch.presented:
        text += f" {_paid_meaning(fetch)}"
    return requests.ConnectionError(text + _kept(destination))


def _paid_meaning(fetch: Fetch) -> str:
    """Return what has become of the last payment that this run made or presented, whose page didn't arrive whole, as a sentence."""
    row = _last_row(fetch)
    if row is not None and row.single_use:
        return _OWED if row.owed else _USED_UP
    return _KEPT


def _is_charge(fetch: Fetch) -> bool:
    """Return whether the last payment that this run made or presented opens one request."""
    row = _last_row(fetch)
    return row is not None and row.single_use


def _last_row(fetch: Fetch) -> PaymentRow | None:
    """Return the row of the last payment that this run made, else of the last that it used. None if it can't be read."""
    from ..ledger.ledger import Ledger

    payments = fetch.observer.paid or fetch.observer.payments
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger.open(env_settings.ledger_url())) as ledger:
        return ledger.payment(payments[-1].payment_hash)
    return None


def _kept(destination: Output) -> str:
    """Return where the next call finds what has arrived of the page, as a sentence, or ""."""
    kept = getattr(destination, "kept", None)
    return "" if kept is None else f" What has arrived is kept in {kept}: the same command continues there."


def _page(fetch: Fetch, destination: Output, as_json: bool) -> bytes | None:
    """Write the page to ``destination``, or return it for the JSON. The page of an HTTP error is never written to a file."""
    response = fetch.response
    if response is None or fetch.error is not None:
        return None
    response.raw.enforce_content_length = True  # not the default in urllib3 1.26, which accepts half a page as a whole one
    if as_json and not destination.is_file:
        return response.content
    if not destination.is_file or response.status_code < 400 or fetch.had_all:
        is_rest = response.status_code == 206
        done = destination.kept_bytes if is_rest else 0
        shown = destination.is_file and not fetch.quiet
        with progress_bar(os.path.basename(fetch.output or ""), response, done=done, shown=shown) as wrote:
            destination.write(response, wrote)
    return None


def _interrupted(fetch: Fetch, destination: Output, interrupt: KeyboardInterrupt) -> int:
    """Report what Ctrl-C may have left behind, and return the exit code. Raises: click.Abort if no money can be involved."""
    if fetch.observer.paid:
        paid = _payments_text(fetch.observer.paid)
        _err(f"Interrupted; {paid}. {_paid_meaning(fetch)}{_kept(destination)}")
        return Exit.UNDELIVERED
    if fetch.confirm.quote is not None or _is_unfinished():
        again = "Call again: the same purchase continues, nothing is paid twice. Or run routeweiler-sync payments recover."
        _err(f"Interrupted while paying; the node may still pay. {again}")
        return Exit.PENDING
    if kept := _kept(destination):
        _err(f"Interrupted.{kept}")
    if isinstance(interrupt, TerminatedError):
        return 128 + interrupt.signum
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
        if fetch.had_all:
            status = f"{fetch.output} has the whole page already"
        if not fetch.quiet or fetch.exit != Exit.OK:
            bought = "what payment {} has bought" if _is_for_one_request(fetch) else "token of payment {}"
            _err(f"{status}; {_payments_text(fetch.observer.payments, bought) or _unpaid_text(fetch.response)}")
            if fetch.exit == Exit.UNDELIVERED and (fetch.observer.paid or fetch.presented) and _is_for_one_request(fetch):
                _err(_paid_meaning(fetch))
    else:
        if fetch.observer.paid:
            _err(_payments_text(fetch.observer.paid))
        elif fetch.presented and not isinstance(fetch.error, RouteweilerError):
            _err(_payments_text(fetch.observer.payments, "payment {} for this request"))
        _err(_problem(fetch))
    for warning in fetch.warnings:
        _err(warning)


def _is_for_one_request(fetch: Fetch) -> bool:
    """Return whether the answer came for a payment that opens one request (scheme ``Payment``)."""
    payment = getattr(fetch.response, "payment", None)
    return payment is not None and not is_reusable(payment.scheme)


def _problem(fetch: Fetch) -> str:
    """Return what went wrong: in terms of the command's options where those explain it, else the text of the error."""
    error, cap_sats = fetch.error, fetch.cap_sats
    if error is None:
        return ""
    if isinstance(error, NoFundingForRailError) and fetch.no_node is not None:
        return f"The server asks for payment, and there is no node to pay with: {fetch.no_node}"
    if isinstance(error, InvoicePaymentError) and cap_sats is not None:
        return f"{text_of(error)} --max-sats {cap_sats} limits the routing fee as well."
    if (fetch.observer.paid or fetch.presented) and not isinstance(error, RouteweilerError):
        return f"{text_of(error).rstrip('.')}. {_paid_meaning(fetch)}"
    return text_of(error)


def _unpaid_text(response: requests.Response) -> str:
    """Return the report on a call without a payment.

    It isn't always "free": a stored token of the origin is sent with requests for other pages as a guess, and the answer doesn't
    show whether the page needed it.
    """
    had_token = any(is_credential(str(response.request.headers.get(name, ""))) for name in CREDENTIAL_HEADERS)
    return "nothing paid: a token that was paid for earlier was sent along" if had_token else "free"


def _payments_text(payments: Sequence[TracePayment], bought: str = "token of payment {}") -> str:
    """Return ``paid 10 sat + 1 sat fee, payment hash …`` or ``nothing paid: token … used again`` for each payment, or "".

    ``bought`` says what is used again, with ``{}`` for the payment hash.
    """
    from .._core.money import sats

    def text(payment: TracePayment) -> str:
        price = f"{sats(payment.amount_msat)} + {sats(payment.fee_msat)} fee"
        if payment.reused:
            return f"nothing paid: {bought.format(payment.payment_hash)} used again ({price}, paid earlier)"
        return f"paid {price}, payment hash {payment.payment_hash}"

    return "; ".join(text(payment) for payment in payments)


def _as_json(fetch: Fetch, content: bytes | None, dry: DryRun | None = None) -> dict[str, Any]:
    """Return the output of ``--json``: the whole outcome. Tokens are redacted.

    ``body`` is text if ``content`` is UTF-8, else base64; ``bodyEncoding`` names which of the two. ``dry`` is the result of a dry
    run, None if this was none.
    """
    from .._core.urls import without_userinfo, without_userinfos
    from ..paywall.credentialed import tokens_offered
    from ..protocol.token_search import holds_token, without_tokens

    response, error, payments = fetch.response, fetch.error, fetch.observer.payments
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
        **({"quote": quote_as_json(fetch.confirm.quote)} if dry is None else verdict_as_json(dry)),
        "error": None
        if error is None
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


def _owner_of(path: str) -> str | None:
    """Return what would be lost with the file ``path``: the ledger that the call pays from, or its trace. None if neither."""
    from ..ledger.ledger import Ledger

    files = {}
    with contextlib.suppress(LedgerError), contextlib.closing(Ledger.open(env_settings.ledger_url())) as ledger:
        if ledger.url.startswith("sqlite:///"):
            file = ledger.url.removeprefix("sqlite:///")
            files = {file + end: "ledger" for end in ("", "-wal", "-shm", "-journal")}
    if trace := os.environ.get(env_vars.TRACE):
        files[os.path.expanduser(trace)] = "trace"
    for file, owner in files.items():
        with contextlib.suppress(OSError):
            if os.path.realpath(path) == os.path.realpath(file) or os.path.samefile(path, file):
                return owner if os.path.isfile(file) or not os.path.exists(file) else None
    return None


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

    Raises: click.UsageError for a header without a colon or a name that HTTP allows.
    """
    headers: dict[str, str | bytes | None] = {}
    for each in given:
        name, colon, value = each.partition(":")
        if not colon or not is_name(name.strip()):
            raise click.UsageError(f"a header is 'NAME: VALUE', not {shown(each)}")
        value = value.strip()
        headers[name.strip()] = None if not value else value if value.isascii() else os.fsencode(value)
    if body is not None and "content-type" not in {name.lower() for name in headers}:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    return headers
