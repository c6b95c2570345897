"""What a purchase relies on in a wallet: one class of tests for all wallets and their fakes, so that no fake drifts from the truth.

A subclass gives the fixture ``wallet``, a `ContractWallet`, and is named ``Test…``. What a wallet can't be made to do
(`ContractWallet.abilities`) is skipped by name. What lnd alone says and does is left to `node_contract`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import json
import logging
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.funding.source import LightningFundingSource
from routeweiler_sync.funding.wallet import NodeInfo, NodePayment, WalletClient

#: Generous: a real payment takes 0.1 s, and a machine may be slow.
PATIENCE_S = 60.0
POLL_S = 0.05
#: What "within the deadline" allows a slow machine.
SLACK_S = 10.0
#: How long a wallet is waited for that may not answer at all.
STRANGER_S = 4.0
#: When the interrupt comes: the order is in flight by then.
INTERRUPT_S = 2.0
AMOUNT_MSAT = 21_000
FEE_LIMIT_MSAT = 50_000
NETWORK = "bitcoin-regtest"
SENDERS = 6
ROOT = Path(__file__).parents[2]

#: Replies that say of a send that it is, or will be, the one payment.
ONE_PAYMENT = frozenset({WalletReply.SUCCEEDED, WalletReply.EXISTS, WalletReply.IN_FLIGHT, WalletReply.UNKNOWN})
#: Replies that say nothing about whether money will move.
OPEN_REPLIES = frozenset({WalletReply.UNKNOWN, WalletReply.IN_FLIGHT, WalletReply.EXISTS})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a client is made, in a form that a child process reads: the class's name in ``funding.lightning``, and its arguments.

    ``arguments`` must be of JSON's types, and may hold secrets: a recipe goes over pipes alone.
    """

    name: str
    arguments: dict[str, Any] = field(repr=False)

    def build(self, **others: Any) -> Any:
        """A new client; ``others`` replace arguments."""
        cls = getattr(importlib.import_module("routeweiler_sync.funding.lightning"), self.name)
        return cls(**self.arguments | others)


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A client with a key that the wallet doesn't take, and the texts that must stand nowhere."""

    client: Any
    secrets: tuple[str, ...]


class ContractWallet(Protocol):
    """A wallet that a test may do things to. Its payments cost a fee above 0."""

    #: A client that may do everything.
    client: Any
    #: How to make more of them.
    recipe: Recipe
    #: What mustn't stand in any text: the key, in every spelling in which the client gets it.
    secrets: tuple[str, ...]
    #: How this wallet says that a payment has ended unpaid: FAILED, FAILED_FOR_GOOD or FAILED_SO_FAR.
    failed: WalletReply
    #: How it says that it knows nothing of a hash: NOT_FOUND or FAILED_SO_FAR.
    unknown_hash: WalletReply
    #: What it answers to a key that it doesn't take: REFUSED, or UNKNOWN where it doesn't answer at all.
    stranger: WalletReply
    #: Whether the same invoice may be ordered again, whatever became of the first order.
    sends_again: bool
    #: Whether an order's ``max_fee_msat`` is a limit that the wallet itself keeps.
    keeps_fee_limit: bool
    #: A subset of {"hold", "lose answer", "lose order", "restart"}.
    abilities: frozenset[str]

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        """An invoice of somebody else, payable over a hop that charges."""
        ...

    def make_expired_invoice(self, amount_msat: int) -> str:
        """An invoice that has expired by the wallet's clock."""
        ...

    def make_unpayable_invoice(self, amount_msat: int) -> str:
        """An invoice to which there is no route."""
        ...

    def beyond_balance_msat(self) -> int:
        """More than the wallet could pay."""
        ...

    def stranger_client(self) -> Stranger:
        """A client with a key that this wallet doesn't know."""
        ...

    def own_list(self) -> list[NodePayment]:
        """All payments in the wallet's own list, with its costs, read without the client under test."""
        ...

    def hold(self) -> AbstractContextManager[Callable[[], None]]:
        """Inside, payments that start stay in flight; calling the value, or leaving, lets them go on (ability ``hold``)."""
        ...

    def lose_answer(self, *, times: int | None = None) -> AbstractContextManager[None]:
        """Inside, orders are carried out, and nothing of what the wallet says of them arrives (ability ``lose answer``).

        ``times``: only the next so many orders.
        """
        ...

    def lose_order(self, *, times: int | None = None) -> AbstractContextManager[None]:
        """Inside, orders leave the client and never arrive (ability ``lose order``); only the next ``times``."""
        ...

    def stop(self) -> None:
        """End the wallet as a killed process ends (ability ``restart``)."""
        ...

    def start(self) -> None:
        """Start it again, with all that it had on disk."""
        ...


class WalletContract:
    """The promises of a wallet. Any two tests may run in any order on one wallet."""

    @pytest.fixture
    def wallet(self) -> ContractWallet:
        raise NotImplementedError("a subclass gives the wallet")

    # What is paid

    def test_a_payment_yields_the_preimage_and_its_cost(self, wallet: ContractWallet) -> None:
        """Else there is no token to be had, or the budget doesn't add up with the wallet."""
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        answer = send(wallet.client, bolt11)
        assert answer.reply is WalletReply.SUCCEEDED, answer
        assert_paid_once(wallet, bolt11, answer)

    def test_a_payment_is_found_again_by_its_hash(self, wallet: ContractWallet) -> None:
        """A buyer that died after paying has nothing but the hash: it must find preimage and cost again."""
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        assert send(wallet.client, bolt11).reply is WalletReply.SUCCEEDED
        for follow in (False, True):
            answer = track(wallet.client, bolt11, follow=follow)
            assert answer.reply is WalletReply.SUCCEEDED, answer
            assert_paid_once(wallet, bolt11, answer)

    def test_an_invoice_that_is_sent_again_is_not_paid_again(self, wallet: ContractWallet) -> None:
        """On any doubt the same invoice is sent again, if the wallet is known to refuse it."""
        _needs_second_orders(wallet)
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        first = send(wallet.client, bolt11)
        assert first.reply is WalletReply.SUCCEEDED, first
        for _ in range(2):
            assert send(wallet.client, bolt11).reply in (WalletReply.EXISTS, WalletReply.SUCCEEDED)
        again = track(wallet.client, bolt11)
        assert (again.reply, again.preimage) == (WalletReply.SUCCEEDED, first.preimage)
        assert_paid_once(wallet, bolt11, again)

    def test_many_at_once_pay_one_invoice_once(self, wallet: ContractWallet) -> None:
        """Threads and machines may send the same invoice at the same instant."""
        _needs_second_orders(wallet)
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        barrier, answers = threading.Barrier(SENDERS), list[WalletAnswer]()

        def order() -> None:
            barrier.wait(PATIENCE_S)
            answers.append(send(wallet.client, bolt11))

        run_all([order] * SENDERS)
        assert {answer.reply for answer in answers} <= ONE_PAYMENT, answers
        assert_paid_once(wallet, bolt11, settled(wallet, bolt11))

    def test_threads_share_a_client(self, wallet: ContractWallet) -> None:
        """A session's threads pay over one client: no answer may go to another thread's payment."""
        bolt11s = [wallet.make_invoice(AMOUNT_MSAT + 1_000 * number) for number in range(SENDERS)]
        client, answers = wallet.recipe.build(), dict[str, WalletAnswer]()
        run_all([lambda bolt11=bolt11: answers.update({bolt11: send(client, bolt11)}) for bolt11 in bolt11s])  # type: ignore[misc]
        with closing(client):
            for number, bolt11 in enumerate(bolt11s):
                answer = answers[bolt11]
                if answer.reply in OPEN_REPLIES:
                    answer = settled(wallet, bolt11)
                assert answer.reply is WalletReply.SUCCEEDED, answer
                assert_paid_once(wallet, bolt11, answer, amount_msat=AMOUNT_MSAT + 1_000 * number)

    # What isn't paid

    def test_an_unknown_hash_is_told_as_unknown(self, wallet: ContractWallet) -> None:
        """It is what lets a row of which nothing is known go on, by the rule for this wallet."""
        unknown = secrets.token_bytes(32)
        for follow in (False, True):
            began = time.monotonic()
            answer = wallet.client.track(unknown, timeout_s=PATIENCE_S, follow=follow)
            assert answer.reply is wallet.unknown_hash, answer
            assert time.monotonic() - began < PATIENCE_S
        state = "unknown_hash" if wallet.unknown_hash is WalletReply.NOT_FOUND else "in_flight"
        assert wallet.client.track_payment(unknown.hex()).state == state

    def test_an_expired_invoice_is_not_paid(self, wallet: ContractWallet) -> None:
        """Its end must be told as one: else the row blocks its page until the user gives it up."""
        bolt11 = wallet.make_expired_invoice(AMOUNT_MSAT)
        answer = send(wallet.client, bolt11)
        assert answer.reply in (WalletReply.EXPIRED, WalletReply.REFUSED, wallet.failed), answer
        assert track(wallet.client, bolt11).reply in (wallet.unknown_hash, wallet.failed)
        assert_not_paid(wallet, bolt11)

    def test_an_invoice_without_a_route_fails(self, wallet: ContractWallet) -> None:
        """What "failed" is worth differs from wallet to wallet: the word must be the one whose rule fits this wallet."""
        bolt11 = wallet.make_unpayable_invoice(AMOUNT_MSAT)
        answer = send(wallet.client, bolt11)
        assert answer.reply in (wallet.failed, WalletReply.UNKNOWN, WalletReply.IN_FLIGHT), answer
        ended = until_it_ends(wallet, bolt11)
        assert ended.reply is wallet.failed, ended
        assert ended.preimage is None
        assert_not_paid(wallet, bolt11)

    @pytest.mark.parametrize("spoil", ["checksum", "short", "no invoice"])
    def test_an_invoice_that_cannot_be_read_starts_nothing(self, wallet: ContractWallet, spoil: str) -> None:
        """Not understood as a refusal, a bad invoice would block its scope for ever."""
        good = wallet.make_invoice(AMOUNT_MSAT)
        bad = {"checksum": good[:-1] + ("q" if good[-1] != "q" else "p"), "short": good[:7], "no invoice": "lightning"}[spoil]
        answer = send(wallet.client, bad, payment_hash_of(good))
        assert answer.reply in (WalletReply.REFUSED, wallet.failed), answer
        assert_not_paid(wallet, good)

    def test_more_than_the_wallet_has_is_not_paid(self, wallet: ContractWallet) -> None:
        """An empty wallet is the commonest fault of all: it must be told as one, and leave nothing open."""
        bolt11 = wallet.make_invoice(wallet.beyond_balance_msat())
        answer = send(wallet.client, bolt11)
        assert answer.reply in (WalletReply.REFUSED, wallet.failed), answer
        assert answer.reason
        assert track(wallet.client, bolt11).reply in (wallet.unknown_hash, wallet.failed)
        assert_not_paid(wallet, bolt11)

    def test_a_fee_limit_holds_or_the_wallets_own_is_told(self, wallet: ContractWallet) -> None:
        """A fee beyond what was reserved breaks the budget: the order's limit holds, or the wallet's own is asked first."""
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        if wallet.keeps_fee_limit:
            answer = send(wallet.client, bolt11, max_fee_msat=0)
            assert answer.reply in (wallet.failed, WalletReply.REFUSED), answer
            assert_not_paid(wallet, bolt11)
            return
        cap_msat = wallet.client.own_fee_cap_msat(bolt11, timeout_s=PATIENCE_S)
        assert isinstance(cap_msat, int)
        answer = send(wallet.client, bolt11)
        assert answer.reply is WalletReply.SUCCEEDED, answer
        [listed] = payments(wallet, bolt11)
        assert listed.fee_msat <= cap_msat

    @pytest.mark.slow
    def test_a_wrong_key_pays_nothing_and_is_told_without_the_key(self, wallet: ContractWallet) -> None:
        """The refusal ends the row as unspent; its text goes to a log, where no key may be."""
        bolt11, stranger = wallet.make_invoice(AMOUNT_MSAT), wallet.stranger_client()
        with closing(stranger.client) as client:
            answer = send(client, bolt11, timeout_s=STRANGER_S)
            assert answer.reply is wallet.stranger, answer
            assert client.track(payment_hash_of(bolt11), timeout_s=STRANGER_S, follow=False).reply is WalletReply.UNKNOWN
            with pytest.raises(FundingError) as caught:
                client.get_info(timeout_s=STRANGER_S)
            assert_no_secret(f"{answer!r}{answer}{texts_of(caught.value)}", stranger.secrets)
        assert_not_paid(wallet, bolt11)

    # What isn't known yet

    @pytest.mark.slow
    def test_a_payment_in_flight_is_told_and_followed_to_its_end(self, wallet: ContractWallet) -> None:
        """A slow payment isn't a failed one; following it brings the token without a second purchase."""
        _needs(wallet, "hold")
        bolt11, followed = wallet.make_invoice(AMOUNT_MSAT), list[WalletAnswer]()
        with wallet.hold() as release:
            began = time.monotonic()
            assert send(wallet.client, bolt11, timeout_s=2).reply in (WalletReply.UNKNOWN, WalletReply.IN_FLIGHT)
            assert time.monotonic() - began < 2 + SLACK_S
            assert track(wallet.client, bolt11, follow=False).reply is WalletReply.IN_FLIGHT
            began = time.monotonic()
            assert wallet.client.track(payment_hash_of(bolt11), timeout_s=1, follow=True).reply in OPEN_REPLIES
            assert time.monotonic() - began < 1 + SLACK_S
            if wallet.sends_again:
                assert send(wallet.client, bolt11, timeout_s=SLACK_S).reply in OPEN_REPLIES
            follower = threading.Thread(target=lambda: followed.append(until_it_ends(wallet, bolt11)))
            follower.start()
            release()
            follower.join(PATIENCE_S)
        assert [answer.reply for answer in followed] == [WalletReply.SUCCEEDED], followed
        assert_paid_once(wallet, bolt11, followed[0])

    @pytest.mark.slow
    def test_an_answer_that_was_lost_is_found_by_the_hash(self, wallet: ContractWallet) -> None:
        """The wallet has paid, and nobody heard it: the money bought a preimage that must not be lost."""
        _needs(wallet, "lose answer")
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        with wallet.lose_answer():
            answer = send(wallet.client, bolt11, timeout_s=STRANGER_S)
        assert answer.reply in (WalletReply.UNKNOWN, WalletReply.IN_FLIGHT, WalletReply.SUCCEEDED), answer
        assert_paid_once(wallet, bolt11, settled(wallet, bolt11))

    @pytest.mark.slow
    def test_an_order_that_was_lost_is_not_taken_for_a_failure(self, wallet: ContractWallet) -> None:
        """It left, and may arrive yet: read as "failed", the next call would buy with another invoice, and both be paid."""
        _needs(wallet, "lose order")
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        with wallet.lose_order():
            answer = send(wallet.client, bolt11, timeout_s=STRANGER_S)
        assert answer.reply is WalletReply.UNKNOWN, answer
        assert track(wallet.client, bolt11).reply is wallet.unknown_hash
        assert_not_paid(wallet, bolt11)
        if wallet.sends_again:
            assert send(wallet.client, bolt11).reply is WalletReply.SUCCEEDED
            assert_paid_once(wallet, bolt11, settled(wallet, bolt11))

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here that send a signal")
    def test_an_interrupt_ends_the_wait_and_not_the_payment(self, wallet: ContractWallet) -> None:
        """Ctrl-C in a notebook: the cell stops at once, the next one finds what was paid, and pays with the same client."""
        _needs(wallet, "hold")
        bolt11s = [wallet.make_invoice(AMOUNT_MSAT) for _ in range(2)]
        with wallet.hold() as release, _child(INTERRUPTED_BUYER, wallet, bolt11s) as child:
            interrupted = json.loads(child.stdout.readline())
            assert interrupted["after_s"] < INTERRUPT_S + SLACK_S
            assert track(wallet.client, bolt11s[0], follow=False).reply is WalletReply.IN_FLIGHT
            release()
            child.stdin.write("go on\n")
            rest, errors = child.communicate(timeout=2 * PATIENCE_S)
        assert [json.loads(line) for line in rest.splitlines()] == ["succeeded", "succeeded"], errors
        assert_no_secret(rest + errors, wallet.secrets)
        for bolt11 in bolt11s:
            assert_paid_once(wallet, bolt11, settled(wallet, bolt11))

    # The wallet is gone

    @pytest.mark.slow
    def test_a_wallet_that_is_gone_raises_nothing_and_takes_no_longer_than_allowed(self, wallet: ContractWallet) -> None:
        """An order that finds nobody is the commonest outage: the user's program must neither hang nor see a stranger's error."""
        _needs(wallet, "restart")
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        wallet.stop()
        try:
            began = time.monotonic()
            answer = send(wallet.client, bolt11, timeout_s=3)
            assert answer.reply in (WalletReply.REFUSED, WalletReply.UNKNOWN), answer
            for follow in (False, True):
                told = wallet.client.track(payment_hash_of(bolt11), timeout_s=3, follow=follow)
                assert told.reply is WalletReply.UNKNOWN, told
            asked: list[Callable[[], Any]] = [
                lambda: wallet.client.check_ready(3),
                lambda: wallet.client.get_info(timeout_s=3),
                *_optional_questions(wallet.client, bolt11, timeout_s=3),
            ]
            for ask in asked:
                with pytest.raises(FundingError) as caught:
                    ask()
                assert_no_secret(texts_of(caught.value), wallet.secrets)
            assert time.monotonic() - began < 3 * (len(asked) + 3) + SLACK_S
            assert_no_secret(repr(answer), wallet.secrets)
        finally:
            wallet.start()
        ready(wallet)
        assert_not_paid(wallet, bolt11)

    @pytest.mark.slow
    def test_a_wallet_that_is_killed_mid_payment_knows_it_when_it_is_back(self, wallet: ContractWallet) -> None:
        """The row waits for this wallet's word: a client that keeps a dead connection would never hear it."""
        _needs(wallet, "restart")
        _needs(wallet, "hold")
        bolt11 = wallet.make_invoice(AMOUNT_MSAT)
        with wallet.hold():
            assert send(wallet.client, bolt11, timeout_s=2).reply in OPEN_REPLIES
            wallet.stop()
            wallet.start()
            ready(wallet)
        assert_paid_once(wallet, bolt11, settled(wallet, bolt11))

    @pytest.mark.slow
    def test_an_order_after_a_restart_goes_over_a_new_connection(self, wallet: ContractWallet) -> None:
        """An order that leaves over a dead connection is lost, and its row stays open: for nothing, the wallet being there."""
        _needs(wallet, "restart")
        bolt11s = [wallet.make_invoice(AMOUNT_MSAT) for _ in range(2)]
        assert send(wallet.client, bolt11s[0]).reply is WalletReply.SUCCEEDED
        wallet.stop()
        wallet.start()
        ready(wallet)
        answer = send(wallet.client, bolt11s[1])
        assert answer.reply is WalletReply.SUCCEEDED, answer
        assert_paid_once(wallet, bolt11s[1], answer)

    # Who it is

    def test_the_wallet_is_the_same_over_clients_and_restarts(self, wallet: ContractWallet) -> None:
        """Rows name their wallet: were it another one tomorrow, they could never be asked about."""
        ready(wallet)
        info = wallet.client.get_info(timeout_s=PATIENCE_S)
        assert len(bytes.fromhex(info.identity_pubkey)) == 33
        assert isinstance(info, NodeInfo)
        assert info.network in ("", NETWORK)
        with closing(wallet.recipe.build()) as other:
            assert other.get_info().identity_pubkey == info.identity_pubkey
        if "restart" in wallet.abilities:
            wallet.stop()
            wallet.start()
            ready(wallet)
            assert wallet.client.get_info().identity_pubkey == info.identity_pubkey
        source = LightningFundingSource(client=wallet.client, network=NETWORK)
        assert source.ready(PATIENCE_S) == info.identity_pubkey == source.node_pubkey

    def test_it_is_a_wallet_client(self, wallet: ContractWallet) -> None:
        """The Protocol is what a purchase asks for: anything else is called as a stranger's client, with fewer promises."""
        assert isinstance(wallet.client, WalletClient)

    def test_the_wallets_list_agrees_with_what_was_told(self, wallet: ContractWallet) -> None:
        """The audit compares the ledger with this list: it must be what the sends said."""
        if not hasattr(wallet.client, "list_payments"):
            pytest.skip("this wallet has no list")
        bolt11, unpaid = wallet.make_invoice(AMOUNT_MSAT), wallet.make_unpayable_invoice(AMOUNT_MSAT)
        answer = send(wallet.client, bolt11)
        send(wallet.client, unpaid)
        assert until_it_ends(wallet, unpaid).reply is wallet.failed
        listed = {payment.payment_hash: payment for payment in wallet.client.list_payments()}
        [own] = payments(wallet, bolt11)
        found = listed[payment_hash_of(bolt11).hex()]
        assert (found.status, found.amount_msat, found.fee_msat) == ("SUCCEEDED", answer.amount_msat, own.fee_msat)
        assert (lost := listed.get(payment_hash_of(unpaid).hex())) is None or lost.status == "FAILED"

    # Secrets, pickles, forks

    def test_no_text_of_a_client_holds_its_key(self, wallet: ContractWallet, caplog: pytest.LogCaptureFixture) -> None:
        """repr goes to notebooks and crash reports, vars to debuggers' exports, pickles to disks, logs everywhere."""
        caplog.set_level(logging.DEBUG)
        with closing(wallet.recipe.build()) as client:
            bolt11 = wallet.make_invoice(AMOUNT_MSAT)
            answer = send(client, bolt11)
            assert answer.reply is WalletReply.SUCCEEDED, answer
            assert_no_secret(repr(answer), (*wallet.secrets, answer.preimage.hex() if answer.preimage else ""))
            public = {key: value for key, value in vars(client).items() if not key.startswith("_")}
            for text in (repr(client), str(client), f"{client}", repr(public), repr(client.get_info()), caplog.text):
                assert_no_secret(text, wallet.secrets)
            pickled = pickle.dumps(client)
            assert_no_secret(pickled.decode("latin-1"), wallet.secrets)
            for secret in wallet.secrets:
                with contextlib.suppress(ValueError):
                    assert bytes.fromhex(secret) not in pickled

    def test_a_pickled_client_pays_or_says_what_is_missing(self, wallet: ContractWallet) -> None:
        """A worker gets its client by pickle: without its key it must say so, and never ask a wallet for nothing."""
        with closing(wallet.recipe.build()) as client, closing(pickle.loads(pickle.dumps(client))) as unpickled:
            bolt11 = wallet.make_invoice(AMOUNT_MSAT)
            answer = send(unpickled, bolt11)
            if answer.reply is WalletReply.SUCCEEDED:
                assert_paid_once(wallet, bolt11, answer)
                return
            assert answer.reply is WalletReply.REFUSED, answer
            with pytest.raises(FundingError):
                unpickled.get_info()
            assert_not_paid(wallet, bolt11)

    def test_a_copy_is_the_same_client(self, wallet: ContractWallet) -> None:
        """A settings object that is copied must not lose the key, nor open a connection for each copy."""
        assert copy.copy(wallet.client) is wallet.client
        assert copy.deepcopy({"client": wallet.client})["client"] is wallet.client

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
    def test_a_fork_pays_over_connections_of_its_own(self, wallet: ContractWallet) -> None:
        """gunicorn and multiprocessing fork after a client was used: a connection used on both sides hangs or garbles."""
        bolt11s = [wallet.make_invoice(AMOUNT_MSAT) for _ in range(3)]
        with _child(FORKING_BUYER, wallet, bolt11s) as child:
            out, errors = child.communicate(timeout=2 * PATIENCE_S)
        told = [json.loads(line) for line in out.splitlines()]
        assert sorted(line["who"] for line in told) == ["before", "child", "parent"], errors
        assert {line["reply"] for line in told} == {"succeeded"}, out
        assert {line["identity"] for line in told} == {wallet.client.get_info().identity_pubkey}
        assert_no_secret(out + errors, wallet.secrets)
        for bolt11 in bolt11s:
            assert_paid_once(wallet, bolt11, settled(wallet, bolt11))


#: Pays, is interrupted, waits for a word, then asks about the first payment and makes a second one. Prints lines of JSON.
INTERRUPTED_BUYER = """
import json, signal, sys, time
from tests.support.wallet_contract import INTERRUPT_S, Recipe

work = json.loads(sys.stdin.readline())
client = Recipe(name=work["recipe"][0], arguments=work["recipe"][1]).build()


def interrupt(*_):
    raise KeyboardInterrupt


def send(order):
    return client.send(order[0], payment_hash=bytes.fromhex(order[1]), max_fee_msat=50_000, timeout_s=60)


client.get_info()
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, INTERRUPT_S)
began = time.monotonic()
try:
    print(json.dumps(send(work["orders"][0]).reply.value), flush=True)
except KeyboardInterrupt:
    print(json.dumps({"after_s": time.monotonic() - began}), flush=True)
sys.stdin.readline()
until = time.monotonic() + 60
while (answer := client.track(bytes.fromhex(work["orders"][0][1]), timeout_s=60, follow=True)).reply.value != "succeeded":
    assert time.monotonic() < until, answer
print(json.dumps(answer.reply.value), flush=True)
print(json.dumps(send(work["orders"][1]).reply.value), flush=True)
client.close()
"""

#: Pays once, forks, and pays at once on both sides with the same client. Prints a line of JSON for each payment.
FORKING_BUYER = """
import json, os, sys
from tests.support.wallet_contract import Recipe

work = json.loads(sys.stdin.readline())
client = Recipe(name=work["recipe"][0], arguments=work["recipe"][1]).build()


def pay(who, order):
    answer = client.send(order[0], payment_hash=bytes.fromhex(order[1]), max_fee_msat=50_000, timeout_s=60)
    line = {"who": who, "reply": answer.reply.value, "reason": answer.reason, "identity": client.get_info().identity_pubkey}
    os.write(1, (json.dumps(line) + "\\n").encode())


pay("before", work["orders"][0])
pid = os.fork()
if pid == 0:
    try:
        pay("child", work["orders"][1])
    finally:
        os._exit(0)
pay("parent", work["orders"][2])
os.waitpid(pid, 0)
client.close()
"""


def payment_hash_of(bolt11: str) -> bytes:
    """Read independently of the library under test."""
    import bolt11 as library

    return bytes.fromhex(library.decode(bolt11).payment_hash)


def payments(wallet: ContractWallet, bolt11: str) -> list[NodePayment]:
    """The payments of this invoice in the wallet's own list."""
    key = payment_hash_of(bolt11).hex()
    return [payment for payment in wallet.own_list() if payment.payment_hash == key]


def send(
    client: Any,
    bolt11: str,
    payment_hash: bytes | None = None,
    *,
    max_fee_msat: int = FEE_LIMIT_MSAT,
    timeout_s: float = PATIENCE_S,
) -> WalletAnswer:
    key = payment_hash_of(bolt11) if payment_hash is None else payment_hash
    answer: WalletAnswer = client.send(bolt11, payment_hash=key, max_fee_msat=max_fee_msat, timeout_s=timeout_s)
    return answer


def track(client: Any, bolt11: str, *, follow: bool = True) -> WalletAnswer:
    answer: WalletAnswer = client.track(payment_hash_of(bolt11), timeout_s=PATIENCE_S, follow=follow)
    return answer


def until_it_ends(wallet: ContractWallet, bolt11: str) -> WalletAnswer:
    """Ask until the payment has ended, one way or the other."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := track(wallet.client, bolt11)).reply in OPEN_REPLIES:
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_S)
    return answer


def settled(wallet: ContractWallet, bolt11: str) -> WalletAnswer:
    """Ask until the payment has succeeded. A wallet that takes its "failed" back may say so meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := track(wallet.client, bolt11)).reply is not WalletReply.SUCCEEDED:
        assert time.monotonic() < deadline, answer
        time.sleep(POLL_S)
    return answer


def ready(wallet: ContractWallet) -> None:
    """Return once the wallet takes orders."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            wallet.client.check_ready(SLACK_S)
            return
        except FundingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def assert_paid_once(wallet: ContractWallet, bolt11: str, answer: WalletAnswer, *, amount_msat: int = AMOUNT_MSAT) -> None:
    """The answer's preimage is the invoice's, its cost is the wallet's own, and the wallet paid once."""
    assert answer.preimage is not None
    assert hashlib.sha256(answer.preimage).digest() == payment_hash_of(bolt11)
    assert answer.amount_msat == amount_msat
    [listed] = [payment for payment in payments(wallet, bolt11) if payment.status == "SUCCEEDED"]
    assert listed.amount_msat == amount_msat
    assert listed.fee_msat > 0
    assert answer.fee_msat == listed.fee_msat


def assert_not_paid(wallet: ContractWallet, bolt11: str) -> None:
    assert {payment.status for payment in payments(wallet, bolt11)} <= {"FAILED"}


def texts_of(error: BaseException) -> str:
    """Whatever a log may hold of an error, its causes included."""
    return "".join((repr(error), str(error), repr(error.__dict__), *traceback.format_exception(error)))


def assert_no_secret(text: str, hidden: tuple[str, ...]) -> None:
    for secret in filter(None, hidden):
        assert secret.lower() not in text.lower()


@contextlib.contextmanager
def _child(script: str, wallet: ContractWallet, bolt11s: list[str]) -> Iterator[Any]:
    """A process that runs ``script``; the client's recipe and the invoices are its first line. It is gone after the block."""
    work = {
        "recipe": [wallet.recipe.name, wallet.recipe.arguments],
        "orders": [[bolt11, payment_hash_of(bolt11).hex()] for bolt11 in bolt11s],
    }
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(work) + "\n")
        child.stdin.flush()
        yield child
    finally:
        child.kill()
        child.wait()
        for end in (child.stdin, child.stdout, child.stderr):
            if end is not None:
                end.close()


def _optional_questions(client: Any, bolt11: str, *, timeout_s: float) -> Iterator[Callable[[], Any]]:
    """The questions that a client may have, of those that ask its wallet each time."""
    if hasattr(client, "list_payments"):
        yield lambda: list(client.list_payments())


def _needs(wallet: ContractWallet, ability: str) -> None:
    if ability not in wallet.abilities:
        pytest.skip(f"this wallet can't be made to: {ability}")


def _needs_second_orders(wallet: ContractWallet) -> None:
    if not wallet.sends_again:
        pytest.skip("this wallet doesn't promise to refuse a second order, so it never gets one")


def run_all(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()
