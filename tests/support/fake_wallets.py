"""The fakes of the testing kit as `ContractWallet`s: one class a wallet, all over one `FakeLnd` that does the paying."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.testing import FakeLnbits, FakeLnd, FakeNwc, FakePayment
from routeweiler_sync.testing._lnd_book import sign_invoice

from .wallet_contract import ContractWallet, Recipe, Stranger, closing

FEE_MSAT = 1_000
LONG_AGO = 1_700_000_000


class FakeWallet(ContractWallet, Protocol):
    """A fake, behind which a `FakeLnd` pays, that can be reached over a relay."""

    lnd: FakeLnd
    #: The environment variables that name the wallet.
    environ: dict[str, str]

    @property
    def port(self) -> int:
        """Where the client connects to, on 127.0.0.1."""
        ...

    def through(self, port: int) -> Recipe:
        """The same wallet's client, connecting to another port of 127.0.0.1."""
        ...


class OverFakeLnd:
    """What all fakes have from the `FakeLnd` behind them. The others' own faults are in their subclasses."""

    abilities = frozenset({"hold", "lose answer", "lose order", "restart"})

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd = lnd
        lnd.fee_msat = FEE_MSAT

    def make_invoice(self, amount_msat: int, *, expiry_s: int = 3600) -> str:
        return self.lnd.invoice(amount_msat, expiry_s=expiry_s).bolt11

    def make_expired_invoice(self, amount_msat: int) -> str:
        return self.lnd.invoice(amount_msat, created_at=LONG_AGO).bolt11

    def make_unpayable_invoice(self, amount_msat: int) -> str:
        return sign_invoice(
            secrets.token_hex(32),
            payment_hash=secrets.token_bytes(32),
            amount_msat=amount_msat,
            memo="",
            expiry_s=3600,
            created_at=int(self.lnd._now()),
            currency="bcrt",
        )

    def beyond_balance_msat(self) -> int:
        return 2 * 10**12

    def own_list(self) -> list[NodePayment]:
        """That of the node behind the wallet. A wallet with a list and costs of its own tells that one."""
        return [_as_node_payment(payment) for payment in self.lnd.payments]

    @contextmanager
    def hold(self) -> Iterator[Callable[[], None]]:
        def release() -> None:
            self.lnd.clear_faults()
            self.lnd.release()

        self.lnd.hang_next(times=None)
        try:
            yield release
        finally:
            release()


class LndOverGrpc(OverFakeLnd):
    """lnd over gRPC."""

    failed, unknown_hash, stranger = WalletReply.FAILED, WalletReply.NOT_FOUND, WalletReply.REFUSED
    sends_again = keeps_fee_limit = True

    def __init__(self, lnd: FakeLnd) -> None:
        super().__init__(lnd)
        macaroon = Path(lnd.macaroon_path).read_bytes().hex()
        self.recipe = Recipe(
            name="LndClient",
            arguments={
                "grpc_host": lnd.host,
                "grpc_port": lnd.port,
                "macaroon_hex": macaroon,
                "tls_cert_path": lnd.tls_cert_path,
            },
        )
        self.client: Any = lnd.client(macaroon_hex=macaroon)
        self.secrets, self.environ = (macaroon,), dict(lnd.environ)

    def stranger_client(self) -> Stranger:
        wrong = "0201" + secrets.token_hex(48)
        return Stranger(client=self.recipe.build(macaroon_hex=wrong), secrets=(wrong,))

    @contextmanager
    def lose_answer(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("after_paying", times):
            yield

    @contextmanager
    def lose_order(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("before_init", times):
            yield

    @property
    def port(self) -> int:
        return self.lnd.port

    def through(self, port: int) -> Recipe:
        return Recipe(name=self.recipe.name, arguments=self.recipe.arguments | {"grpc_port": port})

    def stop(self) -> None:
        self.lnd.stop()

    def start(self) -> None:
        self.lnd.start()

    @contextmanager
    def _dropping(self, when: Literal["before_init", "after_paying"], times: int | None) -> Iterator[None]:
        self.lnd.drop_next(when, times=times)
        try:
            yield
        finally:
            self.lnd.clear_faults()


class Lnbits(OverFakeLnd):
    """A wallet of LNbits."""

    failed, unknown_hash, stranger = WalletReply.FAILED_FOR_GOOD, WalletReply.NOT_FOUND, WalletReply.REFUSED
    sends_again, keeps_fee_limit = True, False

    def __init__(self, lnbits: FakeLnbits) -> None:
        super().__init__(lnbits.lnd)
        self.lnbits = lnbits
        self.recipe = Recipe(name="LnbitsClient", arguments={"url": lnbits.url, "admin_key": lnbits.admin_key})
        self.client: Any = lnbits.client()
        self.secrets, self.environ = (lnbits.admin_key,), dict(lnbits.environ)

    def stranger_client(self) -> Stranger:
        wrong = secrets.token_hex(16)
        return Stranger(client=self.recipe.build(admin_key=wrong), secrets=(wrong,))

    def own_list(self) -> list[NodePayment]:
        return [_as_node_payment(payment) for payment in self.lnbits.payments]

    @property
    def url(self) -> str:
        return self.lnbits.url

    @property
    def keys(self) -> tuple[str, str]:
        return self.lnbits.admin_key, self.lnbits.invoice_key

    def poor_wallet(self, amount_sat: int) -> str:
        return self.lnbits.new_wallet(amount_sat * 1000).admin_key

    def internal_invoice(self, amount_msat: int) -> str:
        return self.lnbits.internal_invoice(amount_msat).bolt11

    def make_amountless_invoice(self) -> str:
        return self.lnd.invoice(None).bolt11

    @contextmanager
    def node_down(self) -> Iterator[None]:
        self.lnbits.pend_next(times=None)
        try:
            yield
        finally:
            self.lnbits.clear_faults()

    @contextmanager
    def lose_answer(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("after", times):
            yield

    @contextmanager
    def lose_order(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("before", times):
            yield

    @property
    def port(self) -> int:
        return self.lnbits.port

    def through(self, port: int) -> Recipe:
        return Recipe(name=self.recipe.name, arguments=self.recipe.arguments | {"url": f"http://127.0.0.1:{port}"})

    def stop(self) -> None:
        self.lnbits.stop()

    def start(self) -> None:
        self.lnbits.start()

    @contextmanager
    def _dropping(self, when: Literal["before", "after"], times: int | None) -> Iterator[None]:
        self.lnbits.drop_next(when, times=times)
        try:
            yield
        finally:
            self.lnbits.clear_faults()


def _as_node_payment(payment: FakePayment) -> NodePayment:
    return NodePayment(
        payment_hash=payment.payment_hash,
        status=payment.status,
        amount_msat=payment.amount_msat,
        fee_msat=payment.fee_msat,
        failure_reason=payment.failure_reason,
        created_at_ns=0,
    )


class Nwc(OverFakeLnd):
    """A wallet of Nostr Wallet Connect."""

    failed = unknown_hash = WalletReply.FAILED_SO_FAR
    stranger = WalletReply.REFUSED  # it doesn't answer strangers, so no order is sent
    sends_again = keeps_fee_limit = False

    def __init__(self, lnd: FakeLnd, fake: FakeNwc) -> None:
        super().__init__(lnd)
        self.fake = fake
        self.recipe = Recipe(name="NwcClient", arguments={"uri": fake.uri})
        self.client: Any = fake.client()
        self.secrets, self.environ = (fake.secret, fake.uri), dict(fake.environ)

    def stranger_client(self) -> Stranger:
        wrong = secrets.token_hex(32)
        uri = self.fake.uri.replace(self.fake.secret, wrong)
        return Stranger(client=self.recipe.build(uri=uri), secrets=(wrong, uri))

    @contextmanager
    def lose_answer(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("answer", times):
            yield

    @contextmanager
    def lose_order(self, *, times: int | None = None) -> Iterator[None]:
        with self._dropping("order", times):
            yield

    @property
    def port(self) -> int:
        return self.fake.relays[0].port

    def through(self, port: int) -> Recipe:
        old = f"%3A{self.port}"
        return Recipe(name=self.recipe.name, arguments={"uri": self.fake.uri.replace(old, f"%3A{port}")})

    def stop(self) -> None:
        self.fake.stop()

    def start(self) -> None:
        self.fake.start()

    @contextmanager
    def _dropping(self, what: Literal["answer", "order"], times: int | None) -> Iterator[None]:
        self.fake.drop_next(what, times=times)
        try:
            yield
        finally:
            self.fake.clear_faults()


class LndOverRest(LndOverGrpc):
    """The same lnd over REST."""

    def __init__(self, lnd: FakeLnd) -> None:
        super().__init__(lnd)
        (macaroon,) = self.secrets
        self.recipe = Recipe(
            name="LndRestClient",
            arguments={"url": lnd.rest_url, "macaroon_hex": macaroon, "tls_cert_path": lnd.tls_cert_path},
        )
        self.client, self.environ = lnd.rest_client(macaroon_hex=macaroon), dict(lnd.rest_environ)

    @property
    def port(self) -> int:
        return self.lnd.rest_port

    def through(self, port: int) -> Recipe:
        return Recipe(name=self.recipe.name, arguments=self.recipe.arguments | {"url": f"https://{self.lnd.host}:{port}"})


@contextmanager
def fake_wallet(name: str, lnd: FakeLnd) -> Iterator[FakeWallet]:
    """The wallet of this name, one of `FAKE_WALLETS`, running inside ``with``; ``lnd`` pays for it."""
    with FAKE_WALLETS[name](lnd) as wallet, closing(wallet.client):
        yield wallet


@contextmanager
def _lnd_over_grpc(lnd: FakeLnd) -> Iterator[FakeWallet]:
    yield LndOverGrpc(lnd)


@contextmanager
def _lnd_over_rest(lnd: FakeLnd) -> Iterator[FakeWallet]:
    yield LndOverRest(lnd)


@contextmanager
def _lnbits(lnd: FakeLnd) -> Iterator[FakeWallet]:
    with FakeLnbits(lnd) as lnbits:
        yield Lnbits(lnbits)


@contextmanager
def _nwc(lnd: FakeLnd) -> Iterator[FakeWallet]:
    with FakeNwc(lnd) as fake:
        yield Nwc(lnd, fake)


#: By the names of ``ROUTEWEILER_WALLET``.
FAKE_WALLETS: dict[str, Callable[[FakeLnd], AbstractContextManager[FakeWallet]]] = {
    "lnd": _lnd_over_grpc,
    "lnd-rest": _lnd_over_rest,
    "lnbits": _lnbits,
    "nwc": _nwc,
}
