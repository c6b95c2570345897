"""Each kind of wallet that the environment can name, as a running fake: `FAKE_WALLETS`, by the names of ``ROUTEWEILER_WALLET``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from routeweiler_sync.testing import FakeLnd

from .fake_wallets import fake_wallet


@dataclass(frozen=True, kw_only=True)
class NamedWallet:
    """A wallet that runs, for which ``lnd`` pays. ``environ`` names it, ``secrets`` must stand in no text, ``stop`` ends it."""

    name: str
    lnd: FakeLnd
    environ: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    stop: Callable[[], None] = field(repr=False)


@contextmanager
def named_wallet(name: str, lnd: FakeLnd) -> Iterator[NamedWallet]:
    """The wallet of this name, one of `config.wallets.WALLETS`, running inside ``with``; ``lnd`` pays for it."""
    with fake_wallet(name, lnd) as fake:
        yield NamedWallet(name=name, lnd=lnd, environ=fake.environ, secrets=fake.secrets, stop=fake.stop)
