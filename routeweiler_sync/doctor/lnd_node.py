"""Whether an lnd can pay: the connection, its certificate, the macaroon and its rights, the wallet's state, channels, the clocks.

Each right that paying needs is tried: GetInfo by itself, TrackPaymentV2 with a payment hash that was drawn at random, and
SendPaymentV2 with an invoice that is none. lnd checks the macaroon first and the invoice next, so its answer shows the right, and
nothing can have begun (lnd: routerrpc/router_server.go, SendPaymentV2; rpcperms/interceptor.go). lnd's log has these refusals.

Money: none moves.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._core.deadline import monotonic_s
from .._core.durations import in_words
from .._core.secret_text import without_secrets
from ..errors import FundingError
from ..funding.lnd import rights
from ..funding.lnd.causes import LOOK_S_MAX, Cause
from ..funding.lnd.certificates import Certificate
from ..funding.lnd.endpoint import Credentials, Endpoint, shown
from ..funding.lnd.permissions import Permissions, read_permissions
from ..funding.lnd.replies import is_permission_denied, read_error
from ..funding.replies import WalletReply, tidy
from ..funding.wallet import network_of
from .findings import Finding, ok, warning, wrong, wrong_by
from .wallets import Seen, balance_finding, network_findings, short

if TYPE_CHECKING:
    from ..funding.lnd.node_client import LndConnection, LndNodeClient
    from ..funding.lnd.probe import Probed

#: The oldest lnd whose answers are known.
LND_MIN = (0, 17)
#: The last second of the year 9999. A time beyond is none.
_LAST_UNIX_S = 253_402_300_799
#: How long a node that is starting, or about to unlock itself, is waited for.
START_S = 3.0
#: A certificate or macaroon that ends in less than this time is worth a warning.
ENDING_S = 14 * 86_400
#: Miners may date a block so far ahead (Bitcoin Core, MAX_FUTURE_BLOCK_TIME), and on the main network so long a wait for the next
#: block is all but impossible.
BLOCK_AHEAD_S, BLOCK_BEHIND_S = 2 * 3_600, 4 * 3_600
#: What lnd can't read as an invoice, so that it refuses the order before anything else happens.
NO_INVOICE = "-"
#: A stream's code for "granted": the answer of lnd itself, after it has let the call through.
_GRANTED_CODES = frozenset({"OK", "NOT_FOUND"})
#: The stand-in for the macaroon where none is sent.
_NO_MACAROON = "00"

_SEND, _TRACK, _INFO = rights.PAYING
_CHANNELS = rights.CHANNELS
#: So many rights that paying doesn't need are named.
_NAMED_MAX = 8
#: How to get a macaroon with the least rights.
_BAKE = "routeweiler-sync bakery prints the command."


def findings(
    client: LndNodeClient, networks: tuple[str, ...], pinned: str | None, seen: Seen, *, look_s: float, now: Callable[[], float]
) -> Iterator[Finding]:
    """Yield what is found about the node of ``client``, and fill ``seen``. Ends at the first fault on which the rest depends.

    ``networks`` are those that the session would pay on, ``pinned`` is the public key that the node must have.
    """
    endpoint = client._endpoint
    credentials = Credentials(endpoint)
    unread: Finding | None = None
    macaroon = b""
    try:
        macaroon = bytes.fromhex(credentials.macaroon_hex())
    except FundingError as error:
        unread = wrong_by("macaroon", error)
    try:
        certificates = credentials.certificates()
    except FundingError as error:
        yield wrong_by("certificate", error)
        if unread is not None:
            yield unread
        return
    # The connection is tried without the macaroon: what is wrong with that is another matter.
    bare = client._new_connection(replace(endpoint, macaroon_path=None, macaroon_hex=_NO_MACAROON))
    full = client._new_connection(endpoint)
    try:
        is_ready = (yield from _connection(bare, endpoint, certificates, look_s, now)) and (yield from _state(bare))
        if unread is not None:
            yield unread
        elif is_ready:
            yield from _Node(full, endpoint, macaroon, networks, pinned, seen, look_s, now).findings()
    finally:
        bare.close()
        full.close()


def _connection(
    channel: LndConnection,
    endpoint: Endpoint,
    pinned: tuple[Certificate, ...] | None,
    look_s: float,
    now: Callable[[], float],
) -> Generator[Finding, None, bool]:
    """Yield whether the node answers, and what its certificate says. Return whether it answers."""
    from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

    started = monotonic_s()
    try:
        answer = channel.probe(
            "/lnrpc.State/GetState", pb.GetStateRequest(), pb.GetStateResponse, timeout_s=look_s, with_macaroon=False
        )
    except FundingError as error:
        yield wrong_by("node", error)
        return False
    took_ms = (monotonic_s() - started) * 1000
    if answer.cause is not None and answer.code != "UNIMPLEMENTED":
        yield _caused(answer.cause, endpoint, _pin_remark(answer.cause, pinned, now()))
        return False
    if answer.cause is not None and "http2 header" in answer.text.lower():
        yield _caused(answer.cause, endpoint)
        return False
    yield ok("node", f"lnd at {tidy(endpoint.address)} answers in {took_ms:.0f} ms")
    yield _certificate(channel, endpoint, pinned, now())
    return True


def _state(channel: LndConnection) -> Generator[Finding, None, bool]:
    """Yield the wallet's state. Return whether it pays."""
    try:
        channel.check_ready(START_S)
    except FundingError as error:
        yield wrong_by("state", error)
        return False
    yield ok("state", "the wallet is unlocked, and lnd accepts orders")
    return True


@dataclass(slots=True)
class _Node:
    """The checks of a node that answers: they need the macaroon."""

    channel: LndConnection
    endpoint: Endpoint
    macaroon: bytes
    networks: tuple[str, ...]
    pinned: str | None
    seen: Seen
    look_s: float
    now: Callable[[], float]

    def findings(self) -> Iterator[Finding]:
        from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

        try:
            info = self._ask(_INFO, pb.GetInfoRequest(), pb.GetInfoResponse)
            denied = is_permission_denied(info.code, info.text)
            if info.cause is not None and not denied:
                yield _caused(info.cause, self.endpoint)
                return
            read = read_permissions(self.macaroon)
            yield self._macaroon(read)
            yield self._rights(info, read)
            if info.reply is not None:
                yield from self._about_info(info.reply)
            elif self.pinned is not None:
                self.seen.key = self.pinned
            yield from self._balance(info.reply)
        except FundingError as error:
            yield wrong_by("node", error)

    def _ask(self, path: str, request: Any, response: Any, *, is_stream: bool = False) -> Probed:
        return self.channel.probe(path, request, response, timeout_s=self.look_s, is_stream=is_stream)

    def _macaroon(self, read: Permissions | None) -> Finding:
        named = "the macaroon" if self.endpoint.macaroon_path is None else f"the macaroon in {shown(self.endpoint.macaroon_path)}"
        what = f"{named} is this node's"
        if read is None or read.until is None:
            return ok("macaroon", what)
        left_s = read.until.timestamp() - self.now()
        what = f"{what}; it expires on {_day(read.until)}, in {in_words(max(left_s, 0))}"
        if left_s < ENDING_S:
            return warning("macaroon", what, "Bake a new one in time, and write it into the same file.")
        return ok("macaroon", what)

    def _rights(self, info: Probed, read: Permissions | None) -> Finding:
        """Try each right that paying needs, and whether there are more than that."""
        from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

        # Money: lnd can't read this invoice, so the order starts nothing.
        order = pb.SendPaymentRequest(payment_request=NO_INVOICE, timeout_seconds=1)
        question = pb.TrackPaymentRequest(payment_hash=secrets.token_bytes(32))
        granted = {
            _INFO: _is_granted(info),
            _TRACK: _is_granted(self._ask(_TRACK, question, pb.Payment, is_stream=True)),
            _SEND: _is_granted(self._ask(_SEND, order, pb.Payment, is_stream=True)),
        }
        missing = [path for path, has in granted.items() if has is False]
        unclear = [path for path, has in granted.items() if has is None]
        if missing:
            what = f"the macaroon doesn't permit {_names(missing)}, which paying needs"
            return wrong("rights", what, f"Bake one that does: {_BAKE}")
        if unclear:
            what = f"whether the macaroon permits {_names(unclear)} couldn't be found out"
            return warning("rights", what, f"To be sure, bake one that does: {_BAKE}")
        has = f"the macaroon permits {_names(granted)}"
        if read is not None and (powers := read.powers):
            what = f"{has}, and more than paying needs: whoever reads it can also {_joined(powers)}"
            return warning("rights", what, f"Bake one that can pay and no more: {_BAKE}")
        if read is None and self._may_list():
            what = f"{has}, and more than paying needs, such as ListPayments"
            return warning("rights", what, f"Bake one that can pay and no more: {_BAKE}")
        needed = {("uri", path) for path in (*rights.PAYING, *rights.USEFUL)}
        if read is not None and (more := sorted(map(_right, read.operations - needed))):
            named = [*more[:_NAMED_MAX], *([f"{len(more) - _NAMED_MAX} others"] if len(more) > _NAMED_MAX else [])]
            return ok(
                "rights", f"{has}, and more than paying needs: {_joined(named)}", f"For one that can pay and no more: {_BAKE}"
            )
        return ok("rights", has)

    def _may_list(self) -> bool:
        """Return whether the macaroon permits something that paying doesn't need: a question that changes nothing."""
        from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

        request = pb.ListPaymentsRequest(max_payments=1)
        return self._ask(rights.LIST_PAYMENTS, request, pb.ListPaymentsResponse).reply is not None

    def _about_info(self, info: Any) -> Iterator[Finding]:
        """Yield what lnd tells about itself: version, key, network, chain, graph, and what its clock may be."""
        version = re.match(r"(\d{1,9})\.(\d{1,9})", info.version)
        alias = tidy(without_secrets(info.alias))[:40] or "no alias"
        what = f"lnd {tidy(info.version.partition(' ')[0])}, {alias}, key {short(tidy(info.identity_pubkey))}"
        if version is not None and (int(version[1]), int(version[2])) < LND_MIN:
            yield warning("version", f"{what}: too old to be known", f"Use lnd {'.'.join(map(str, LND_MIN))} or newer.")
        else:
            yield ok("version", what)
        self.seen.key = info.identity_pubkey
        if self.pinned is not None and self.pinned != info.identity_pubkey:
            what = f"the node's key is {short(info.identity_pubkey)}, but node_pubkey is {short(self.pinned)}"
            yield wrong("key", what, "Correct node_pubkey, or the node's address.")
        network = network_of(info.chains[0].network) if info.chains else ""
        yield from network_findings(network, self.networks)
        yield _sync(info, network)
        yield _clock(info.best_header_timestamp, network, self.now())

    def _balance(self, info: Any) -> Iterator[Finding]:
        """Yield what can be paid out of the channels."""
        from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

        if info is not None:
            if not info.num_active_channels:
                others = info.num_inactive_channels + info.num_pending_channels
                if others:
                    what = f"none of its {others} channels is active: their peers are offline, or the channels aren't confirmed yet"
                    yield wrong("channels", what, "Wait for them, or look at lncli listchannels and lncli pendingchannels.")
                else:
                    yield wrong("channels", "it has no channel, so it can't pay anybody", "Open one: lncli openchannel.")
            else:
                others = info.num_inactive_channels
                yield ok("channels", f"{info.num_active_channels} active" + (f", {others} inactive" if others else ""))
        balance = self._ask(rights.BALANCE, pb.ChannelBalanceRequest(), pb.ChannelBalanceResponse)
        if balance.reply is None:
            denied = is_permission_denied(balance.code, balance.text)
            why = "the macaroon doesn't permit ChannelBalance, which paying doesn't need" if denied else tidy(balance.text)
            advice = "To have it checked, bake one that does: routeweiler-sync bakery --balance prints the command."
            yield warning("balance", f"the outbound balance isn't known: {why}", advice)
            return
        local_msat = balance.reply.local_balance.msat
        self.seen.payable_msat = local_msat
        yield balance_finding(local_msat)
        if local_msat <= 0:
            return
        channels = self._ask(_CHANNELS, pb.ListChannelsRequest(), pb.ListChannelsResponse)
        if channels.reply is None:
            return
        active = [each for each in channels.reply.channels if each.active]
        self.seen.htlcs = frozenset(
            htlc.hash_lock.hex() for each in channels.reply.channels for htlc in each.pending_htlcs if not htlc.incoming
        )
        spendable_sat = sum(max(0, each.local_balance - each.local_constraints.chan_reserve_sat) for each in active)
        self.seen.payable_msat = spendable_sat * 1000
        if not spendable_sat:
            advice = "Open another channel, or get paid: the reserve can't be spent."
            yield wrong("payable", "the whole balance is channel reserve, or lies in inactive channels", advice)


def _is_granted(answer: Probed) -> bool | None:
    """Return whether the macaroon permits a call, by lnd's answer to it; None if the answer doesn't show it."""
    if answer.code in _GRANTED_CODES:
        return True
    if is_permission_denied(answer.code, answer.text):
        return False
    # An order is refused for its invoice only after the macaroon was let through.
    is_refused = read_error("send", answer.code, answer.text).reply is WalletReply.REFUSED
    is_known = answer.cause is None or answer.cause.part != "macaroon"
    return True if is_refused and is_known and answer.code == "UNKNOWN" else None


def _names(paths: Iterable[str]) -> str:
    return _joined([path.rpartition("/")[2] for path in paths])


def _right(operation: tuple[str, str]) -> str:
    """Return the name of a macaroon's right: that of an RPC, or of what it allows with a kind of things."""
    entity, action = operation
    return action.rpartition("/")[2] if entity == "uri" else f"{entity}:{action}"


def _joined(words: Sequence[str]) -> str:
    """Return ``words`` as a list in a sentence."""
    last = ", and " if any(" and " in word for word in words) else " and "
    return last.join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _sync(info: Any, network: str) -> Finding:
    height = f"block {info.block_height}"
    if not info.synced_to_chain:
        what, advice = f"the node isn't synced to the chain (it is at {height})", "Wait until it is: lncli getinfo."
        if network == "bitcoin-regtest":  # lnd says so wherever the last block is more than two hours old
            return warning("sync", what, "Payments may work all the same. To be sure, mine a block.")
        return wrong("sync", f"{what}: payments would fail", advice)
    if not info.synced_to_graph:
        what = f"synced to the chain ({height}), but not to the graph of channels: routes may be missing"
        return warning("sync", what, "Wait until it is: lncli getinfo.")
    return ok("sync", f"synced to the chain ({height}) and the graph")


def _clock(header_s: int, network: str, now_s: float) -> Finding:
    """Compare this machine's clock with the time in the newest block, which is all that lnd tells of the time."""
    here = _day(_moment(now_s))
    if not 0 < header_s <= _LAST_UNIX_S:
        return ok("clock", f"{here}; the node tells no time to compare it with")
    block = _moment(header_s)
    apart_s = now_s - header_s
    if apart_s < -BLOCK_AHEAD_S:
        behind = in_words(-apart_s - BLOCK_AHEAD_S)
        what = f"this machine's clock ({here}) is at least {behind} behind: the newest block is from {_day(block)}"
        return wrong("clock", what, "Set this machine's clock: expired invoices would be taken for good ones.")
    if apart_s > BLOCK_BEHIND_S and network == "bitcoin":
        what = f"by this machine's clock ({here}) the node's newest block is {in_words(apart_s)} old"
        return warning("clock", what, "Look whether this clock is right, and whether the node gets new blocks.")
    ago = f"{in_words(apart_s)} ago" if apart_s >= 0 else f"{in_words(-apart_s)} ahead, as may be"
    return ok("clock", f"{here}; the newest block is from {ago}")


def _certificate(channel: LndConnection, endpoint: Endpoint, pinned: tuple[Certificate, ...] | None, now_s: float) -> Finding:
    """Return what the certificate says that the node shows. The connection has accepted it."""
    certificate = pinned[0] if pinned is not None and len(pinned) == 1 else None
    certificate = channel.look(LOOK_S_MAX).certificate or certificate
    trusts = "gRPC trusts" if endpoint.rest_url is None else "this system trusts"
    how = "pinned" if pinned is not None else f"from an authority that {trusts}"
    if endpoint.rest_url is not None and not endpoint.rest_url.has_tls:
        return ok("certificate", "none: the connection has no TLS")
    if certificate is None:
        return ok("certificate", how)
    names = ", ".join([*certificate.hosts, *certificate.addresses][:6]) or "nothing"
    left_s = certificate.not_after.timestamp() - now_s
    what = f"{how}; names {tidy(names)}; valid until {_day(certificate.not_after)}"
    if left_s <= 0 or now_s < certificate.not_before.timestamp():
        what = f"{what}, from {_day(certificate.not_before)} on, and this machine's clock says {_day(_moment(now_s))}"
        return wrong("certificate", what, "Set this machine's clock; if it is right, let lnd make a new certificate.")
    if left_s < ENDING_S:
        advice = "Let lnd make a new one in time (tlsautorefresh), and copy its tls.cert here."
        return warning("certificate", f"{what}, which is in {in_words(left_s)}", advice)
    return ok("certificate", what)


def _pin_remark(cause: Cause, pinned: tuple[Certificate, ...] | None, now_s: float) -> str:
    """Return what else is wrong with the pinned certificate, if the connection failed because of a certificate."""
    if cause.part != "certificate" or pinned is None or "expired" in cause.what:
        return ""
    ended = [each.not_after for each in pinned if each.not_after.timestamp() < now_s]
    return f"; the pinned one has expired besides, on {_day(min(ended))}" if ended else ""


def _caused(cause: Cause, endpoint: Endpoint, remark: str = "") -> Finding:
    what = f"{endpoint.what(cause.what)}{remark}"
    return wrong(cause.part, what, f"{cause.advice[0].upper()}{cause.advice[1:]}.")


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, tz=timezone.utc)


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
