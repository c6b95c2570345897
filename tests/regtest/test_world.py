"""The world is real and whole: what the other tests of this folder stand on. The library under test isn't used here."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import requests

from .build import binaries
from .processes import CommandError, WorldError, wait_for
from .world import SERVICES, World

HTTP_TIMEOUT_S = 20.0
CHALLENGE = re.compile(r'^L402 macaroon="(?P<token>[^"]+)", invoice="(?P<invoice>[^"]+)"$')


def challenge(response: requests.Response) -> tuple[str, str]:
    """Token and invoice of a 402, read from aperture's header lines one by one."""
    assert response.status_code == 402, response.text
    found = [match for line in response.raw.headers.getlist("WWW-Authenticate") if (match := CHALLENGE.match(line))]
    assert len(found) == 1, response.headers
    return found[0]["token"], found[0]["invoice"]


def buy(world: World, url: str) -> tuple[str, dict[str, object]]:
    """Pays for `url` by hand. The credential, and the payment as lnd tells it."""
    token, invoice = challenge(requests.get(url, timeout=HTTP_TIMEOUT_S))
    payment = world.payer.pay(invoice)
    assert payment["status"] == "SUCCEEDED", payment
    return f"L402 {token}:{payment['payment_preimage']}", payment


def get(url: str, credential: str) -> requests.Response:
    return requests.get(url, headers={"Authorization": credential}, timeout=HTTP_TIMEOUT_S)


def test_a_402_can_be_paid_and_its_token_opens_the_whole_service(world: World) -> None:
    """Otherwise no test upon this world says anything about paying."""
    credential, payment = buy(world, world.url("service-a", "one"))
    assert payment["value_msat"] == "10000"
    before = len(world.backend.requests)
    for path in ("one", "two?x=1"):
        answer = get(world.url("service-a", path), credential)
        assert answer.status_code == 200
        assert answer.json()["path"] == f"/service-a/{path}"
    assert [seen.path for seen in world.backend.requests[before:]] == ["/service-a/one", "/service-a/two?x=1"]
    assert "authorization" not in world.backend.requests[-1].headers


def test_a_token_of_one_service_is_refused_by_another(world: World) -> None:
    """Otherwise two services would be one, and tests of a token's scope would prove nothing."""
    credential, _ = buy(world, world.url("service-a", "one"))
    assert get(world.url("service-b", "one"), credential).status_code == 402


def test_the_router_takes_a_fee(world: World) -> None:
    """Otherwise budgets would be tested with payments that cost nothing beyond their amount."""
    _, payment = buy(world, world.url("service-b", "one"))
    assert (payment["value_msat"], payment["fee_msat"]) == ("25000", "1000")


def test_the_payee_can_pay_back(world: World) -> None:
    """Otherwise the payer's channel would run dry in a long run."""
    invoice = world.payer.add_invoice(2_000)
    assert world.payee.pay(invoice.payment_request)["status"] == "SUCCEEDED"
    assert world.payer.lookup_invoice(invoice.payment_hash)["state"] == "SETTLED"


def test_an_unpaid_token_opens_nothing(world: World) -> None:
    """Otherwise the paywall would be a decoration."""
    token, _ = challenge(requests.get(world.url("service-a", "one"), timeout=HTTP_TIMEOUT_S))
    before = len(world.backend.requests)
    assert get(world.url("service-a", "one"), f"L402 {token}:{'00' * 32}").status_code == 402
    assert len(world.backend.requests) == before


@pytest.mark.parametrize("service", [service for service in SERVICES if service.auth == "on"], ids=lambda service: service.name)
def test_each_service_asks_its_own_price(world: World, service: object) -> None:
    """Otherwise tests that tell services by their price would be blind."""
    known = next(one for one in SERVICES if one is service)
    _, invoice = challenge(requests.get(world.url(known.name, "one"), timeout=HTTP_TIMEOUT_S))
    assert int(world.payer.lncli("decodepayreq", invoice)["num_msat"]) == known.price_sat * 1_000


@pytest.mark.slow
def test_a_short_lived_token_ends(world: World) -> None:
    """Otherwise nothing would show what a client does when a token that it holds has expired."""
    credential, _ = buy(world, world.url("short-lived", "one"))
    assert get(world.url("short-lived", "one"), credential).status_code == 200
    wait_for("the token expires", lambda: get(world.url("short-lived", "one"), credential).status_code == 402, watched=[])


def test_a_freebie_service_gives_one_call_and_then_asks(world: World) -> None:
    """Otherwise a service that charges from the second call on wouldn't be tested."""
    world.aperture.restart()
    url = world.url("freebie", "one")
    assert [requests.get(url, timeout=HTTP_TIMEOUT_S).status_code for _ in range(2)] == [200, 402]


def test_a_free_service_never_asks(world: World) -> None:
    """Otherwise the cost of the library where nothing is to be paid couldn't be seen here."""
    assert requests.get(world.url("free", "one"), timeout=HTTP_TIMEOUT_S).status_code == 200


def test_tokens_survive_a_restart_of_aperture(world: World) -> None:
    """Otherwise `aperture.restart` would be another paywall, not the same one again."""
    credential, _ = buy(world, world.url("service-a", "one"))
    world.aperture.restart()
    assert get(world.url("service-a", "one"), credential).status_code == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_arrive_unchanged(world: World, chunked: bool) -> None:
    """Otherwise a body lost on the paid retry would go unnoticed."""
    credential, _ = buy(world, world.url("service-a", "one"))
    body = os.urandom(100_000)
    answer = requests.post(
        world.url("service-a", "post"),
        data=iter([body[:7], body[7:]]) if chunked else body,
        headers={"Authorization": credential},
        timeout=HTTP_TIMEOUT_S,
    )
    assert answer.json()["method"] == "POST"
    assert answer.json()["body_sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.slow
def test_a_killed_payer_comes_back_with_its_payments_and_pays(world: World) -> None:
    """Otherwise the tests that kill the node in the middle of a purchase would end in a broken world."""
    _, payment = buy(world, world.url("service-a", "one"))
    world.payer.kill()
    with pytest.raises(CommandError):
        world.payer.lncli("getinfo")
    world.payer.start()
    assert [known["status"] for known in world.payer.payments_of(str(payment["payment_hash"]))] == ["SUCCEEDED"]
    world.wait_until_payable()


def test_a_frozen_router_keeps_a_payment_in_flight_until_it_thaws(world: World) -> None:
    """Otherwise the tests of payments in flight would test finished ones."""
    invoice = world.payee.add_invoice(5_000)
    world.router.freeze()
    argv = [str(binaries().lncli), "--network=regtest", f"--lnddir={world.payer.folder}", f"--rpcserver={world.payer.grpc_address}"]
    with subprocess.Popen(
        [*argv, "payinvoice", "--force", "--json", "--fee_limit", "10", "--pay_req", invoice.payment_request],
        stdout=subprocess.PIPE,
        env={**os.environ, "HOME": str(world.payer.folder)},
    ) as paying:
        wait_for("the payment is in flight", lambda: world.payer.payments_of(invoice.payment_hash), watched=[world.payer.daemon])
        assert [known["status"] for known in world.payer.payments_of(invoice.payment_hash)] == ["IN_FLIGHT"]
        assert paying.poll() is None
        world.router.thaw()
        paying.communicate(timeout=60)
    assert [known["status"] for known in world.payer.payments_of(invoice.payment_hash)] == ["SUCCEEDED"]
    assert world.payee.lookup_invoice(invoice.payment_hash)["state"] == "SETTLED"


@pytest.mark.slow
def test_what_a_test_leaves_broken_is_mended(world: World) -> None:
    """Otherwise one failed test would fail all that follow."""
    world.router.freeze()
    world.payee.kill()
    assert world.mend()
    assert not world.mend()
    buy(world, world.url("service-a", "one"))


def test_a_baked_macaroon_allows_what_it_says_and_no_more(world: World) -> None:
    """Otherwise the payer's least privilege would be tested with rights that it doesn't have, or with all of them."""
    path = world.payer.bake()
    assert "invoice" not in path.name
    assert world.payer.lncli(f"--macaroonpath={path}", "getinfo")["identity_pubkey"] == world.payer.pubkey
    with pytest.raises(CommandError, match="permission denied"):
        world.payer.lncli(f"--macaroonpath={path}", "addinvoice", "--amt", "1")
    elsewhere = world.payer.bake("info:read", ip_address="10.9.8.7")
    with pytest.raises(CommandError, match="different IP"):
        world.payer.lncli(f"--macaroonpath={elsewhere}", "getinfo")


@pytest.mark.slow
def test_all_payments_are_listed_beyond_one_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a second payment could hide behind the first page."""
    for _ in range(3):
        world.payer.pay(world.payee.add_invoice(1_000).payment_request)
    whole = [known["payment_hash"] for known in world.payer.list_payments()]
    monkeypatch.setattr("tests.regtest.node.PAYMENTS_PAGE", 2)
    assert [known["payment_hash"] for known in world.payer.list_payments()] == whole
    assert len(set(whole)) == len(whole) >= 3


def test_mining_is_seen_by_every_node(world: World) -> None:
    """Otherwise a test of timeouts in blocks would race the nodes."""
    before = world.btcd.height()
    world.mine(2)
    assert {node.lncli("getinfo")["block_height"] for node in world.nodes} == {before + 2}


@pytest.mark.slow
def test_a_program_that_dies_fails_the_wait_at_once_and_shows_its_log(world: World) -> None:
    """Otherwise a broken start would take minutes and say nothing."""
    world.payee.kill()
    started = time.monotonic()
    with pytest.raises(WorldError, match=r"payee has ended.*\n--- payee\.log"):
        world.payee.wait_until_ready()
    assert time.monotonic() - started < 10


def test_a_killed_test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Otherwise each aborted run would leave five servers on the developer's machine."""
    script = textwrap.dedent("""
        import time
        from tests.regtest.processes import Daemon, Keeper
        keeper = Keeper()
        daemon = Daemon("sleeper", ["sleep", "600"], keeper=keeper)
        daemon.start()
        print(daemon.pid, keeper.folder, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as doomed:
        assert doomed.stdout is not None
        pid, _, folder = doomed.stdout.readline().strip().partition(" ")
        os.kill(int(pid), 0)
        assert Path(folder).is_dir()
        doomed.send_signal(signal.SIGKILL)

    def gone() -> bool:
        status = Path("/proc") / pid / "stat"
        dead = not status.exists() or ") Z " in status.read_text()
        return dead and not Path(folder).exists()

    wait_for("the keeper has cleared up", gone, watched=[], timeout_s=30)
