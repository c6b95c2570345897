"""`doctor` beside a real lnd: a set-up is broken in one way after another, and each time the cause is named, with what to do.

Each test breaks one thing, and nothing else may be wrong. What depends on the broken part isn't looked at.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from routeweiler_sync import BudgetEnvelope, Funding, LndClient, Routeweiler
from routeweiler_sync.cli import main
from routeweiler_sync.doctor.checkup import examine
from routeweiler_sync.errors import PaymentPendingError
from routeweiler_sync.funding.lnd import rights
from routeweiler_sync.funding.lnd.certificates import pem_of, read_certificates
from routeweiler_sync.ledger.ledger import Ledger
from tests.support.cli_process import bare_environ
from tests.support.ledger_builders import draw, intent

from .node import Node
from .processes import free_port
from .test_locked_wallet import PASSWORD, LockedNode, locked as locked
from .world import World

pytestmark = pytest.mark.slow

TIMEOUT_S = 120.0
#: A node that is frozen must not keep the user waiting for longer.
HANGING_S = 15.0


class Doctor:
    """A set-up that is in order, until a test changes its environment; and ``routeweiler-sync doctor`` on it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.macaroon = world.payer.bake()
        self.ledger = folder / "ledger.db"
        self.environ = {
            "LND_GRPC_HOST": world.payer.grpc_address,
            "LND_TLS_CERT_PATH": str(world.payer.tls_cert_path),
            "LND_MACAROON_PATH": str(self.macaroon),
            "ROUTEWEILER_NETWORK": "bitcoin-regtest",
            "ROUTEWEILER_LEDGER": str(self.ledger),
        }
        self.said = ""

    def __call__(self) -> dict[str, list[dict[str, Any]]]:
        """The findings that aren't ok, by their check. The exit code agrees with them, and no secret was printed."""
        done = CliRunner().invoke(main, ["doctor", "--json"], env=self.environ)
        self.said = done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        for path in (self.macaroon, self.world.payer.admin_macaroon_path):
            assert path.read_bytes().hex() not in self.said
        found = json.loads(done.output)
        checks: list[dict[str, Any]] = found["checks"]
        wrong = [each for each in checks if each["verdict"] == "wrong"]
        assert (done.exit_code, found["ready"]) == (int(bool(wrong)), not wrong)
        assert all(each["advice"] for each in checks if each["verdict"] != "ok")
        return {
            name: [each for each in checks if each["check"] == name and each["verdict"] != "ok"]
            for name in dict.fromkeys(each["check"] for each in checks if each["verdict"] != "ok")
        }

    def names(self, check: str, verdict: str, *texts: str) -> None:
        """Nothing is found but this, and what is said has each of ``texts`` (regular expressions)."""
        found = self()
        assert list(found) == [check], found
        (finding,) = found[check]
        assert finding["verdict"] == verdict
        for text in texts:
            assert re.search(text, f"{finding['what']} {finding['advice']}"), finding


@pytest.fixture
def doctor(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    for name in list(os.environ):
        if re.match(r"ROUTEWEILER_|LND_|POLAR_|.*_proxy$", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    return Doctor(world, tmp_path)


def test_in_order_it_says_so_and_leaves_no_trace(world: World, doctor: Doctor) -> None:
    """Else nobody could trust it: it asks for each right, and mustn't pay, nor create a ledger."""
    before = world.payer.list_payments()
    argv = [sys.executable, "-m", "routeweiler_sync", "doctor"]  # as a process of its own, once
    environ = bare_environ(**doctor.environ)
    done = subprocess.run(argv, env=environ, cwd=doctor.folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "Ready to pay.")
    assert doctor() == {}
    assert world.payer.list_payments() == before
    assert list(doctor.folder.iterdir()) == []
    assert "at most 1000 sat with routing, by the budget; the channels could carry about 5" in doctor.said


# The way to the node


def test_a_host_that_is_misspelt(doctor: Doctor) -> None:
    doctor.environ["LND_GRPC_HOST"] = "no-such-node.invalid:10009"
    doctor.names("node", "wrong", "can't be resolved", "spelling")


def test_a_port_where_nobody_listens(doctor: Doctor) -> None:
    doctor.environ["LND_GRPC_HOST"] = f"127.0.0.1:{free_port()}"
    doctor.names("node", "wrong", "nothing listens there", "10009")


def test_the_port_of_rest(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_GRPC_HOST"] = world.payer.rest_address
    doctor.names("node", "wrong", "REST port", "10009")


def test_the_port_of_a_web_server(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_GRPC_HOST"] = world.aperture_url.removeprefix("http://")
    doctor.names("node", "wrong", "web server without TLS", "10009")


def test_a_node_that_is_stopped(world: World, doctor: Doctor) -> None:
    world.payer.stop()
    doctor.names("node", "wrong", "nothing listens there", "lnd is running")


def test_a_node_that_hangs(world: World, doctor: Doctor) -> None:
    world.payer.freeze()
    started = time.monotonic()
    doctor.names("node", "wrong", "didn't answer GetState within", "node is up")
    assert time.monotonic() - started < HANGING_S


def test_a_variable_alone_names_no_node(doctor: Doctor) -> None:
    del doctor.environ["LND_GRPC_HOST"]
    doctor.names("wallet", "wrong", "names no wallet", "LND_MACAROON_PATH alone")


def test_two_nodes_are_named(world: World, doctor: Doctor) -> None:
    doctor.environ["POLAR_LND_HOST"] = world.router.grpc_address
    doctor.names("wallet", "warning", "LND_GRPC_HOST", "POLAR_LND_HOST would name one too")


# The wallet's state


def test_no_wallet_yet_then_a_locked_one(locked: LockedNode, doctor: Doctor) -> None:
    locked.wait_for_state("NON_EXISTING")
    doctor.environ |= {"LND_GRPC_HOST": f"127.0.0.1:{locked.port}", "LND_TLS_CERT_PATH": str(locked.folder / "tls.cert")}
    doctor.names("state", "wrong", "no wallet yet", "lncli create")
    seed = locked.rest("/v1/genseed")["cipher_seed_mnemonic"]
    locked.rest("/v1/initwallet", {"wallet_password": PASSWORD, "cipher_seed_mnemonic": seed})
    while not locked.macaroon_path.exists():
        time.sleep(0.05)
    locked.daemon.kill()
    locked.daemon.start()
    locked.wait_for_state("LOCKED")
    doctor.names("state", "wrong", "locked", "lncli unlock")


# The certificate


def test_the_certificate_of_another_node(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_TLS_CERT_PATH"] = str(world.router.tls_cert_path)
    doctor.names("certificate", "wrong", "isn't the one pinned", "tls.cert")


def test_a_certificate_that_has_expired(world: World, doctor: Doctor) -> None:
    (certificate,) = read_certificates(world.payer.tls_cert_path.read_bytes())
    ends = f"{certificate.not_after:%y%m%d%H%M%SZ}".encode()
    assert ends in certificate.der
    (old,) = read_certificates(certificate.der.replace(ends, b"200101000000Z"))
    path = doctor.folder / "old.cert"
    path.write_bytes(pem_of([old]))
    doctor.environ["LND_TLS_CERT_PATH"] = str(path)
    doctor.names("certificate", "wrong", "isn't the one pinned", "expired besides, on 2020-01-01")


def test_a_certificate_that_is_missing(doctor: Doctor) -> None:
    doctor.environ["LND_TLS_CERT_PATH"] = str(doctor.folder / "tls.cert")
    doctor.names("certificate", "wrong", "can't be read .*No such file")


def test_a_key_in_place_of_the_certificate(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_TLS_CERT_PATH"] = str(world.payer.tls_cert_path.with_suffix(".key"))
    doctor.names("certificate", "wrong", "private key and no certificate", "tls.cert")


# The macaroon


def test_a_macaroon_of_another_node(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.router.admin_macaroon_path)
    doctor.names("macaroon", "wrong", "isn't this node's", "give a macaroon of the node at|Give a macaroon of the node at")


def test_a_macaroon_that_can_only_read(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.macaroon_path("readonly"))
    doctor.names("rights", "wrong", "doesn't permit SendPaymentV2,", "routeweiler-sync bakery")


def test_a_macaroon_for_invoices(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.macaroon_path("invoice"))
    found = doctor()
    assert list(found) == ["rights", "balance"]
    assert "GetInfo, TrackPaymentV2 and SendPaymentV2" in found["rights"][0]["what"]


def test_the_macaroon_of_an_admin(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.admin_macaroon_path)
    doctor.names("rights", "warning", "more than paying needs", "make macaroons", "spend the coins", "routeweiler-sync bakery")


def test_the_least_macaroon_can_pay_but_not_show_the_balance(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.bake(*map(rights.uri, rights.PAYING)))
    doctor.names("balance", "warning", "doesn't permit ChannelBalance, which paying doesn't need", "bakery --balance")


def test_a_macaroon_file_that_is_missing(doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(doctor.folder / "payer.macaroon")
    doctor.names("macaroon", "wrong", "can't be read .*No such file")


@pytest.mark.parametrize("content", [b"", b"\x02\x01\x03lnd", b"0201036c6e6402f8", b"not a macaroon at all"])
def test_a_macaroon_file_that_holds_none(doctor: Doctor, content: bytes) -> None:
    path = doctor.folder / "payer.macaroon"
    path.write_bytes(content)
    doctor.environ["LND_MACAROON_PATH"] = str(path)
    doctor.names("macaroon", "wrong", "holds no macaroon|cut off, or none at all", "macaroon file")


def test_a_macaroon_in_place_of_its_path(doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = doctor.macaroon.read_bytes().hex()
    doctor.names("wallet", "wrong", "LND_MACAROON_PATH isn't a path: it looks like a macaroon", "ROUTEWEILER_LNDCONNECT")


def test_a_macaroon_that_ends(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.bake(timeout_s=3600))
    doctor.names("macaroon", "warning", "expires on .* in 60 minutes|in 1 hour", "Bake a new one")
    short = world.payer.bake(timeout_s=1)
    time.sleep(1.5)
    doctor.environ["LND_MACAROON_PATH"] = str(short)
    doctor.names("macaroon", "wrong", "has expired", "bake a new one|Bake a new one")


def test_a_macaroon_for_another_machine(world: World, doctor: Doctor) -> None:
    doctor.environ["LND_MACAROON_PATH"] = str(world.payer.bake(ip_address="10.1.2.3"))
    doctor.names("macaroon", "wrong", "another IP address", "Bake one for this machine")


# The network, the channels


def test_another_network_than_the_nodes(doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_NETWORK"] = "bitcoin"
    doctor.names("network", "wrong", "the node is on bitcoin-regtest, but bitcoin is wanted", "ROUTEWEILER_NETWORK")


def test_a_network_that_there_is_not(doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_NETWORK"] = "mainnet"
    doctor.names("network", "wrong", "'mainnet', which isn't a network", "bitcoin-regtest")


@pytest.fixture
def fresh(world: World) -> Iterator[Node]:
    """A node on the world's chain without any channel."""
    node = Node(f"fresh-{free_port()}", world._programs, world._keeper)
    node.open(world.btcd.chain)
    node.wait_until_ready()
    yield node
    node.kill()


def test_a_node_without_a_channel(fresh: Node, doctor: Doctor) -> None:
    doctor.environ |= {
        "LND_GRPC_HOST": fresh.grpc_address,
        "LND_TLS_CERT_PATH": str(fresh.tls_cert_path),
        "LND_MACAROON_PATH": str(fresh.bake()),
    }
    found = doctor()
    found.pop("sync", None)  # without peers it never has the graph
    assert list(found) == ["channels", "balance"]
    assert "no channel" in found["channels"][0]["what"]
    assert "no outbound balance" in found["balance"][0]["what"]
    assert {each["verdict"] for checks in found.values() for each in checks} == {"wrong"}


def test_channels_whose_peers_are_gone(world: World, doctor: Doctor) -> None:
    world.router.stop()
    found = doctor()
    assert found["channels"][0]["verdict"] == "wrong"
    assert "none of its 1 channels is active" in found["channels"][0]["what"]


# The ledger


def test_a_ledger_that_cannot_be_created(doctor: Doctor) -> None:
    (doctor.folder / "file").touch()
    doctor.environ["ROUTEWEILER_LEDGER"] = str(doctor.folder / "file" / "ledger.db")
    doctor.names("ledger", "wrong", "isn't a folder")


def test_a_ledger_in_a_folder_that_takes_no_files(doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_LEDGER"] = "/proc/ledger.db"
    doctor.names("ledger", "wrong", "can't be created")


def test_a_ledger_of_a_newer_version(doctor: Doctor) -> None:
    used(doctor.ledger)
    with sqlite3.connect(doctor.ledger) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    doctor.names("ledger", "wrong", "newer version .*schema 99", "Upgrade routeweiler-sync")


def test_a_database_that_is_no_ledger(doctor: Doctor) -> None:
    with sqlite3.connect(doctor.ledger) as connection:
        connection.execute("CREATE TABLE somebody_elses (x)")
    connection.close()
    doctor.names("ledger", "wrong", "not a ledger", "Name another file")


def test_a_ledger_that_others_can_read(doctor: Doctor) -> None:
    used(doctor.ledger)
    doctor.ledger.chmod(0o644)
    doctor.names("ledger", "warning", "mode 0644", "chmod 600")


def test_a_ledger_that_all_can_write(doctor: Doctor) -> None:
    used(doctor.ledger)
    doctor.ledger.chmod(0o666)
    doctor.names("ledger", "wrong", "every user can read and write", "chmod 600")


def used(path: Path, envelope: BudgetEnvelope | None = None, **changes: Any) -> None:
    """Make a ledger, with an unfinished payment if there are ``changes``."""
    ledger = Ledger.open(path)
    ledger.freeze("default")
    ledger.thaw("default")
    if changes:
        ledger.open_payment(intent(1, **changes), None if envelope is None else draw(envelope))
    ledger.close()


def test_a_payment_that_its_node_does_not_know(world: World, doctor: Doctor) -> None:
    used(doctor.ledger, node_pubkey=world.payer.pubkey)
    doctor.names("payments", "warning", "10 sat to https://api.example", "doesn't know of it", "payments abandon [0-9a-f]{64}")


def test_a_payment_of_another_node(world: World, doctor: Doctor) -> None:
    used(doctor.ledger, node_pubkey=world.router.pubkey)
    doctor.names("payments", "warning", "ordered from another wallet", "payments recover")


def test_a_payment_that_its_node_has_made(world: World, doctor: Doctor) -> None:
    invoice = world.payee.add_invoice(10_000)
    assert world.payer.pay(invoice.payment_request)["status"] == "SUCCEEDED"
    used(doctor.ledger, node_pubkey=world.payer.pubkey, payment_hash=invoice.payment_hash)
    doctor.names("payments", "warning", "the node has paid it", "payments recover to book it")


def test_a_payment_that_is_on_its_way(world: World, doctor: Doctor) -> None:
    """The payment is made by a session, through a router that stands still."""
    client = LndClient("127.0.0.1", world.payer.grpc_port, doctor.macaroon, tls_cert_path=world.payer.tls_cert_path)
    funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest")

    def freeze(quote: object) -> bool:
        world.router.freeze()
        return True

    session = Routeweiler(funding=[funding], ledger=doctor.ledger, payment_timeout=3, confirm=freeze)
    with session, pytest.raises(PaymentPendingError):
        session.get(world.url("service-a", "doctor"))
    client.close()
    found = doctor()
    assert "still paying it" in found["payments"][0]["what"]
    assert "payments recover" in found["payments"][0]["advice"]


def test_a_payment_whose_node_is_down(world: World, doctor: Doctor) -> None:
    used(doctor.ledger, node_pubkey=world.payer.pubkey)
    doctor.environ["LND_GRPC_HOST"] = f"127.0.0.1:{free_port()}"
    found = doctor()
    assert list(found) == ["node", "payments"]
    assert "can't be asked now" in found["payments"][0]["what"]


# The budget, the clock


def test_a_budget_that_is_frozen(doctor: Doctor) -> None:
    ledger = Ledger.open(doctor.ledger)
    ledger.freeze("default")
    ledger.close()
    doctor.names("budget", "wrong", "frozen", "budget thaw default")


def test_a_budget_that_is_used_up(world: World, doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_BUDGET"] = "11 sat"
    used(doctor.ledger, BudgetEnvelope("default", cap_minor_units=11), node_pubkey=world.payer.pubkey)
    found = doctor()
    assert list(found) == ["payments", "budget"]
    assert re.search(r"used up.*0 of 11 sat in all left; 11 sat reserved", found["budget"][0]["what"])
    assert "ROUTEWEILER_BUDGET" in found["budget"][0]["advice"]


def test_a_budget_that_cannot_be_read(doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_BUDGET"] = "plenty"
    doctor.names("budget", "wrong", "'plenty' isn't a limit", "Correct ROUTEWEILER_BUDGET")


def test_no_budget(doctor: Doctor) -> None:
    doctor.environ["ROUTEWEILER_BUDGET"] = "none"
    doctor.names("budget", "warning", "no limit")


@pytest.fixture
def examined(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """An examination whose clock can be another. What isn't ok, by its check."""
    for name, value in doctor.environ.items():
        monkeypatch.setenv(name, value)

    def run(ahead_s: float) -> dict[str, str]:
        found = examine(now=lambda: time.time() + ahead_s)
        return {each.check: f"{each.verdict.value}: {each.what}" for each in found if each.verdict.value != "ok"}

    return run


def test_a_clock_that_is_behind(examined: Callable[..., dict[str, str]]) -> None:
    """An invoice that has expired would be taken for a good one."""
    assert examined(0) == {}
    found = examined(-12 * 3600)
    assert list(found) == ["clock"]
    assert re.match(r"wrong: this machine's clock .* is at least (9|10) hours behind", found["clock"])


def test_a_clock_that_is_years_off(examined: Callable[..., dict[str, str]]) -> None:
    """The dates of a certificate show it, also on a network where blocks are rare."""
    found = examined(5 * 365 * 86_400)
    assert re.match(r"wrong: pinned; .* and this machine's clock says", found["certificate"])
