"""Each kind of wallet that the environment can name, as a running fake and the variables that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.testing.fake_lnbits import FakeLnbits
from routeweiler_sync.testing.fake_nwc import FakeNwc


@dataclass(frozen=True, kw_only=True)
class NamedWallet:
    """A wallet that runs, for which ``lnd`` pays. ``secrets`` must stand in no text."""

    name: str
    lnd: FakeLnd
    environ: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@contextmanager
def _lnd(lnd: FakeLnd) -> Iterator[NamedWallet]:
    yield NamedWallet(name="lnd", lnd=lnd, environ=dict(lnd.environ))


@contextmanager
def _lnd_rest(lnd: FakeLnd) -> Iterator[NamedWallet]:
    yield NamedWallet(name="lnd-rest", lnd=lnd, environ=dict(lnd.rest_environ))


@contextmanager
def _lnbits(lnd: FakeLnd) -> Iterator[NamedWallet]:
    with FakeLnbits(lnd) as fake:
        yield NamedWallet(name="lnbits", lnd=lnd, environ=dict(fake.environ), secrets=(fake.admin_key,))


@contextmanager
def _nwc(lnd: FakeLnd) -> Iterator[NamedWallet]:
    with FakeNwc(lnd) as fake:
        yield NamedWallet(name="nwc", lnd=lnd, environ=dict(fake.environ), secrets=(fake.secret,))


#: By the names of ``ROUTEWEILER_WALLET``.
NAMED_WALLETS: dict[str, Callable[[FakeLnd], AbstractContextManager[NamedWallet]]] = {
    "lnd": _lnd,
    "lnd-rest": _lnd_rest,
    "lnbits": _lnbits,
    "nwc": _nwc,
}
