"""A real lnd whose wallet is missing, then locked: nothing is sent, and the error says what to do."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from routeweiler_sync import Funding, FundingError, Ledger, LndClient, Routeweiler
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from routeweiler_sync.testing._lnd_service import _NOT_UP
from tests.support.node_contract import SEND

from .processes import CommandError, Daemon, free_port, wait_for
from .world import World

pytestmark = pytest.mark.slow

PASSWORD = base64.b64encode(b"password").decode()


class LockedNode:
    """An lnd with a wallet that needs a password, without a chain: it never gets further than that."""

    def __init__(self, world: World, folder: Path) -> None:
        self.folder, self.port, self.rest_port = folder, free_port(), free_port()
        self.daemon = Daemon(
            "locked",
            [
                world._programs.lnd,
                f"--lnddir={folder}",
                "--bitcoin.regtest",
                "--bitcoin.node=nochainbackend",
                "--nobootstrap",
                "--nolisten",
                f"--rpclisten=127.0.0.1:{self.port}",
                f"--restlisten=127.0.0.1:{self.rest_port}",
            ],
            keeper=world._keeper,
        )

    @property
    def macaroon_path(self) -> Path:
        return self.folder / "data" / "chain" / "bitcoin" / "regtest" / "admin.macaroon"

    def client(self, macaroon: Path | None = None) -> LndClient:
        path = macaroon or self.macaroon_path
        return LndClient("127.0.0.1", self.port, path, tls_cert_path=self.folder / "tls.cert", timeout_seconds=20)

    def rest(self, path: str, body: dict | None = None) -> dict:
        """lnd's REST, which needs no macaroon while there is no wallet to check it against."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # lnd's certificate is no server's to strict stacks
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{self.rest_port}{path}", data, timeout=60, context=context) as reply:
                return json.load(reply)
        except (OSError, urllib.error.URLError) as error:
            raise CommandError(f"{path}: {error}") from error

    def state(self) -> str:
        return self.rest("/v1/state")["state"]

    def wait_for_state(self, state: str) -> None:
        wait_for(f"lnd is {state}", lambda: self.state() == state, watched=[self.daemon])


@pytest.fixture
def locked(world: World, tmp_path: Path) -> Iterator[LockedNode]:
    node = LockedNode(world, tmp_path / "locked")
    node.daemon.start()
    yield node
    node.daemon.kill()


def refused(world: World, client: LndClient, folder: Path, state: str) -> str:
    """The session's error on a 402 of aperture; nothing was spent, nothing is reserved."""
    funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest", node_pubkey="02" * 33)
    with Routeweiler(funding=[funding], ledger=folder / "ledger.db") as session, pytest.raises(FundingError) as caught:
        session.get(world.url("service-a", "page"))
    assert caught.value.spent is False
    ledger = Ledger.open(folder / "ledger.db")
    assert not list(ledger.payments(state="open"))
    ledger.close()
    # Past the question that comes before each order, lnd's own words are those that the fake says.
    request = pb.SendPaymentRequest(payment_request="lnbcrt1").SerializeToString()
    with closing(grpc.secure_channel(f"{client.grpc_host}:{client.grpc_port}", credentials(client))) as channel:
        call = channel.unary_stream(SEND, request_serializer=bytes, response_deserializer=pb.Payment.FromString)
        with pytest.raises(grpc.RpcError) as told:
            next(call(request, timeout=20))
    assert (told.value.code(), told.value.details()) == (grpc.StatusCode.UNKNOWN, _NOT_UP[state])
    return str(caught.value)


def credentials(client: LndClient) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(Path(client.tls_cert_path or "").read_bytes())


def test_a_node_without_a_wallet_then_with_a_locked_one(world: World, locked: LockedNode, tmp_path: Path) -> None:
    """After a reboot an lnd waits for its password: the program must say so, and must not take the payment for made or lost."""
    locked.wait_for_state("NON_EXISTING")
    assert "lncli create" in refused(world, locked.client(world.payer.admin_macaroon_path), tmp_path, "NON_EXISTING")
    seed = locked.rest("/v1/genseed")["cipher_seed_mnemonic"]
    locked.rest("/v1/initwallet", {"wallet_password": PASSWORD, "cipher_seed_mnemonic": seed})
    wait_for("the wallet has its macaroons", locked.macaroon_path.exists, watched=[locked.daemon])
    locked.daemon.kill()
    locked.daemon.start()
    locked.wait_for_state("LOCKED")
    assert "lncli unlock" in refused(world, locked.client(), tmp_path, "LOCKED")
