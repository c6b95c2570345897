"""The testing kit's paywalls answer as the real servers of the scheme ``Payment`` do: each presentation is made to both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.payment_by_hand import Bought, Pay, lines, payment_lines

from .payment_servers import MPPX, MPPX_011, PAYMENT_SERVERS, PYMPP, SERVICE, PaymentServer, running
from .server_builds import Runtimes
from .world import World

TIMEOUT_S = 30
#: Longer than a presentation takes on a slow machine.
SHORT_LIFE_S = 5
PATH = f"/{SERVICE}/a"


class Shop:
    """A server of either kind, and the way to pay its invoices."""

    def __init__(self, server: PaymentServer, url: str, pay: Pay) -> None:
        self.server, self.url, self.pay = server, url, pay
        self.field = "Payment-Authorization" if server.kit.get("header") else "Authorization"

    def ask(self, path: str = PATH, credential: str | None = None, *, method: str = "GET", body: bytes = b"") -> requests.Response:
        headers = {} if credential is None else {self.field: credential}
        return requests.request(method, self.url + path, headers=headers, data=body, timeout=TIMEOUT_S)

    def buy(self, path: str = PATH, *, method: str = "GET", body: bytes = b"") -> Bought:
        return Bought(payment_lines(self.ask(path, method=method, body=body))[0], self.pay)


def told(answer: requests.Response, bought: Bought) -> dict[str, Any]:
    """Return what of an answer must be the same at both."""
    is_json = "json" in answer.headers.get("Content-Type", "") and answer.status_code >= 400
    problem = answer.json() if is_json else {}
    challenges = payment_lines(answer)
    fresh = Bought(challenges[0]) if challenges else None
    return {
        "status": answer.status_code,
        "problem": problem.get("type"),
        "fields": list(problem),
        "receipt": "Payment-Receipt" in answer.headers,
        "private": answer.headers.get("Cache-Control"),
        "schemes": [line.partition(" ")[0] for line in lines(answer)],
        "parameters": list(fresh.echo) if fresh else None,
        "request": sorted(fresh.request) if fresh else None,
        "same invoice": fresh.invoice == bought.invoice if fresh else None,
        "same challenge": fresh.echo == bought.echo if fresh else None,
    }


def altered(text: str) -> str:
    return ("A" if text[0] != "A" else "B") + text[1:]


def presentations(shop: Shop) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make all presentations, and say what came of each."""
    bought = shop.buy()
    spoilt: dict[str, Callable[[], str]] = {
        "wrong preimage": lambda: bought.credential(preimage="11" * 32),
        "preimage not hex": lambda: bought.credential(preimage="zz" * 32),
        "another realm": lambda: bought.credential(realm="elsewhere"),
        "another request": lambda: bought.credential(request=altered(bought.echo["request"])),
        "another id": lambda: bought.credential(id=altered(bought.echo["id"])),
        "no expires": lambda: bought.credential(expires=None),
        "no opaque": lambda: bought.credential(opaque=None),
        "not base64": lambda: "Payment !!!",
        "not JSON": lambda: "Payment AAAA",
    }
    for name, credential in spoilt.items():
        if name != "no opaque" or "opaque" in bought.echo:
            yield name, told(shop.ask(PATH, credential()), bought)
    if shop.server.bound:
        yield "another path", told(shop.ask(f"/{SERVICE}/b", bought.credential()), bought)
        yield "another query", told(shop.ask(f"{PATH}?x=1", bought.credential()), bought)
        yield "another method", told(shop.ask(PATH, bought.credential(), method="POST"), bought)
    yield "no description", told(shop.ask(PATH, bought.credential(description=None)), bought)
    yield "again", told(shop.ask(PATH, bought.credential()), bought)
    yield "asked anew", told(shop.ask(), bought)
    more = shop.buy(method="POST", body=b"{}")
    yield "another body", told(shop.ask(PATH, more.credential(), method="POST", body=b"[]"), more)
    yield "the same body", told(shop.ask(PATH, more.credential(), method="POST", body=b"{}"), more)


def late_presentations(shop: Shop) -> Iterator[tuple[str, dict[str, Any]]]:
    """Present what was paid in time after its challenge has expired, then under the fresh challenge, and once more."""
    bought = shop.buy()
    time.sleep(SHORT_LIFE_S + 1)
    late = shop.ask(PATH, bought.credential())
    yield "after it has expired", told(late, bought)
    fresh = Bought(payment_lines(late)[0])
    yield "under the fresh challenge", told(shop.ask(PATH, bought.under(fresh)), bought)
    yield "under the fresh challenge again", told(shop.ask(PATH, bought.under(fresh)), bought)


def compare(
    world: World, runtimes: Runtimes, server: PaymentServer, ask: Callable[[Shop], Iterator[tuple[str, dict[str, Any]]]]
) -> None:
    """Ask the real server and the kit's paywall, and hold what came of it against each other."""

    def pay(invoice: str) -> bytes:
        return bytes.fromhex(world.payer.pay(invoice)["payment_preimage"])

    with running(server, world, runtimes) as real:
        seen = dict(ask(Shop(server, real.url, pay)))
        assert real.outside == []
    with FakeLnd() as lnd, Paywall(lnd, service=SERVICE, **server.kit) as paywall:
        node = lnd.client()
        kit = dict(ask(Shop(server, paywall.base_url, lambda invoice: node.pay_invoice(invoice, max_fee_msat=10_000))))
        node.close()
    different = [
        f"{name}, {field}: the server has {answer[field]}, the kit {kit[name][field]}"
        for name, answer in seen.items()
        for field in answer
        if answer[field] != kit[name][field]
    ]
    assert not different, "\n".join(["", *different])


@pytest.mark.parametrize("server", PAYMENT_SERVERS, ids=lambda server: server.name.replace("`", ""))
def test_the_kit_answers_as_the_server_does(world: World, runtimes: Runtimes, server: PaymentServer) -> None:
    """A program tested with the kit would meet other answers in the world, and pay for them."""
    compare(world, runtimes, server, presentations)


@pytest.mark.parametrize("server", [MPPX, MPPX_011, PYMPP], ids=lambda server: server.name)
def test_the_kit_answers_to_late_payments_as_the_server_does(world: World, runtimes: Runtimes, server: PaymentServer) -> None:
    """A payment that came too late would be lost with the server, and not with the kit, or the other way round."""
    short = replace(
        server, settings={**server.settings, "SERVER_LIFE_S": SHORT_LIFE_S}, kit={**server.kit, "expires": SHORT_LIFE_S}
    )
    compare(world, runtimes, short, late_presentations)
