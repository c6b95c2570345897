"""A testing kit for programs that pay: a fake lnd, a paywall, and pytest fixtures. It needs no node, no network and no bitcoin.

    pip install "routeweiler-sync[testing]"

`FakeLnd` is a node that pays and gets paid, `Paywall` a server that asks for payment. Both are real servers on 127.0.0.1, so a test
goes the whole way of a payment: HTTP, TLS, gRPC, and a ledger file.


Fixtures
--------

pytest finds them by itself, in every project where the package is installed:

- ``fake_lnd``: a running `FakeLnd`.
- ``paywall``: a running `Paywall` that sells at 10 sat a token. ``fake_lnd`` issues its invoices.
- ``paying_session``: a `routeweiler_sync.Routeweiler` that pays through ``fake_lnd`` within the default budget. Its ledger and
  trace are ``ledger.db`` and ``trace.jsonl`` in the test's ``tmp_path``.


Recipes
-------

My program pays for the page, once:

    def test_it_pays_once(paying_session, paywall, fake_lnd):
        my_program(paying_session, paywall.url)
        my_program(paying_session, paywall.url)
        assert paywall.paid_for("/paid")
        assert not paywall.paid_for("/archive")
        assert fake_lnd.spent_sat == 10

My program stops at 100 sat. Each page costs 30 sat here, and needs a token of its own:

    def test_it_stops_at_100_sat(paying_session, fake_lnd):
        with Paywall(fake_lnd, price_msat=30_000, sells="path") as shop:
            with paying_session.limit(sats=100), pytest.raises(BudgetExceededError):
                for number in range(50):
                    my_program(paying_session, shop.url_for(f"/page/{number}"))
        assert fake_lnd.spent_sat == 90

A script that is a process of its own, with a limit of 100 sat:

    def test_the_script_stops_at_100_sat(fake_lnd, tmp_path):
        environ = {**os.environ, **fake_lnd.environ, "ROUTEWEILER_LEDGER": str(tmp_path / "ledger.db")}
        command = [sys.executable, "-m", "routeweiler_sync", "run", "--max-sats", "100", "my_script.py"]
        with Paywall(fake_lnd, price_msat=30_000, sells="path") as shop:
            subprocess.run([*command, shop.base_url], env=environ)
        assert fake_lnd.spent_sat == 90

The payment hangs. My program must not pay again, whatever it does:

    def test_it_waits_for_a_hanging_payment(fake_lnd, paywall, tmp_path):
        fake_lnd.hang_next()
        with Routeweiler(funding=[fake_lnd.funding()], ledger=tmp_path / "ledger.db", payment_timeout=1) as session:
            with pytest.raises(PaymentPendingError):
                my_program(session, paywall.url)
            fake_lnd.release()
            my_program(session, paywall.url)
        assert len(fake_lnd.payments) == 1

Without pytest, in a notebook for instance:

    with FakeLnd() as lnd, Paywall(lnd) as paywall:
        with Routeweiler(funding=[lnd.funding()], ledger="test.db") as session:
            print(session.get(paywall.url).text)

Without sockets, on a mock of the library ``responses``:

    def test_on_a_mock(paying_session, fake_lnd):
        with responses.RequestsMock() as mock:
            api = add_paywall(mock, "https://api.example", fake_lnd, price_msat=5_000)
            my_program(paying_session, "https://api.example/weather")
        assert api.paid_for("/weather")
        assert fake_lnd.spent_sat == 5


What can go wrong
-----------------

The node (methods of `FakeLnd`; those named ``…_next`` strike the next payment, or the next ``times``):

- ``fee_msat``: what routing costs. ``payee_online = False``: there is no route.
- ``fail_next``, ``refuse_next``: the payment fails, or is refused before it starts.
- ``hang_next``, then ``release``: the payment takes long. ``orphan_next``: it never ends.
- ``drop_next``: the connection breaks, before the payment is stored, in flight, or after it is paid.
- ``stop``, ``start``, ``restart``, ``lock``, ``unlock``: the node goes away, and comes back.
- ``bake_macaroon``, ``bake_refused_macaroon``: a macaroon with few rights, or with none. ``account``: an account of litd.
- ``rest_client``, ``rest_funding``, ``rest_environ``: the same node over REST. ``proxy_page_next``: a proxy's error page there.

A wallet of LNbits in front of it (`FakeLnbits`; ``with FakeLnd() as lnd, FakeLnbits(lnd) as lnbits``):

- ``fail_next``, ``refuse_next``, ``drop_next``, ``stop``, ``start``, ``restart``: as above.
- ``pend_next``: pending for ever, since the node never hears of the order.
- ``twice_next``, ``gateway_next``: a proxy sends the order twice, or answers with an error page.
- ``settings``: the fee reserve, the service fee, how long LNbits waits for its node. ``balance_msat``: what is in the wallet.
- ``internal_invoice``: an invoice of the same LNbits, which its node never sees.

A wallet of Nostr Wallet Connect in front of it (`FakeNwc`, with the extra ``nwc``; ``with FakeLnd() as lnd, FakeNwc(lnd) as nwc``):

- ``refuse_next``, ``fail_next``: the wallet refuses an order, or calls it failed, and perhaps settles it later (``settle_failed``).
- ``drop_next``, ``late_next``, ``forge_next``, ``duplicate_next``: orders and answers are lost, late, forged or doubled.
- ``refuse_at_relay_next``, ``relays``, ``stop_service``, ``stop``, ``start``: the relay refuses an order; relay or wallet go away.

The server (`Paywall`):

- ``faults.refuse_tokens``, ``faults.settle_lag``, ``faults.expire_invoices``, … : see `Faults`.
- ``cut_next``, ``answer_next(500)``: the page that was paid for doesn't come.
- ``revoke_tokens``: tokens that were good are refused from now on.


What happened
-------------

- ``fake_lnd.spent_sat``, ``fake_lnd.spent_msat``: what was paid, with routing. ``fake_lnd.payments``: each payment.
- ``paywall.paid_for(path)``: the requests for a page that were paid for. ``paywall.requests``: all requests, with their status.
- ``paying_session.ledger``, ``paying_session.spent_msat``: what the session itself says.

A failed assertion about one of them prints what was asked for and paid instead. `Paywall` explains all its arguments, and
docs/how-to/test-with-the-kit.md has the arguments that make it sell as a certain server does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fake_lnbits import FakeLnbits
    from .fake_lnd import FakeInvoice, FakeLnd, FakePayment
    from .fake_nwc import FakeNwc
    from .paywall import Faults, PaidRequests, Paywall, PaywallRequest, add_paywall

__all__ = [
    "FakeInvoice",
    "FakeLnbits",
    "FakeLnd",
    "FakeNwc",
    "FakePayment",
    "Faults",
    "PaidRequests",
    "Paywall",
    "PaywallRequest",
    "add_paywall",
]

_HOME = dict.fromkeys(("FakeInvoice", "FakeLnd", "FakePayment"), "fake_lnd") | dict.fromkeys(
    ("Faults", "PaidRequests", "Paywall", "PaywallRequest", "add_paywall"), "paywall"
)
_HOME["FakeLnbits"] = "fake_lnbits"
_HOME["FakeNwc"] = "fake_nwc"


if not TYPE_CHECKING:  # with __getattr__ in view, a type checker would accept any misspelt name

    def __getattr__(name: str) -> Any:
        """Import a name of the kit on first use: pytest loads `pytest_plugin` in every run, also without the extra."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return value

    def __dir__() -> list[str]:
        """List the kit's names too, for `help` and for completion."""
        return sorted({*globals(), *__all__})
