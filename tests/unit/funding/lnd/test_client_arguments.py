"""What a client is told - by arguments, by an lndconnect URI, by the environment - and that none of it leaks."""

from __future__ import annotations

import base64
import copy
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import requests

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding import Funding
from routeweiler_sync.funding.lightning import LndClient
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.funding.wallet import default_fee_cap_msat, network_of

MACAROON = bytes(range(48, 112))
SECRET = MACAROON.hex()
CERT = b"\x30\x82" + bytes(range(64))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_importing_the_client_imports_no_grpc() -> None:
    """grpc costs a program 100 ms and its forks; one that never meets a 402 must not pay for it."""
    code = (
        "import sys, routeweiler_sync.funding.lightning as l\n"
        "c = l.LndClient('h', macaroon_hex='00'); l.LightningFundingSource(c, 'bitcoin'); repr(c)\n"
        "print([m for m in ('grpc', 'google.protobuf', 'bolt11', 'tenacity') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[4])
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        {"macaroon_path": None},
        {"macaroon_path": "x", "macaroon_hex": "00"},
        {"macaroon_hex": "0g"},
        {"macaroon_hex": "000"},
        {"macaroon_hex": ""},
        {"macaroon_hex": "00", "tls_cert_path": "x", "tls_cert_pem": "y"},
        {"macaroon_hex": "00", "grpc_port": 0},
        {"macaroon_hex": "00", "grpc_port": 65536},
        {"macaroon_hex": "00", "timeout_seconds": 0},
        {"macaroon_hex": "00", "timeout_seconds": 10**400},
        {"macaroon_hex": "00", "timeout_seconds": Decimal("NaN")},
        {"macaroon_hex": "00", "timeout_seconds": Decimal("sNaN")},
        {"macaroon_hex": "00", "grpc_host": ""},
        {"macaroon_hex": "00", "grpc_host": "localhost:10009"},
        {"macaroon_hex": "00", "grpc_host": "https://localhost"},
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_at_once(arguments: dict) -> None:
    """Found at the first purchase instead, a typo costs a night's run."""
    with pytest.raises(ValueError):
        LndClient(**{"grpc_host": "localhost"} | arguments)


def test_constructing_reads_and_connects_nothing() -> None:
    """A script configures its node at import time, often before the files are mounted."""
    client = LndClient("no.such.host.invalid", macaroon_path="/no/such/file", tls_cert_path="/no/such/cert")
    source = Funding.lightning_lnd(client=client, network="bitcoin")
    assert (source.node_pubkey, source.max_fee_msat) == (None, None)
    client.close()
    client.close()


@pytest.mark.parametrize("what", ["macaroon", "cert", "empty macaroon", "not a macaroon", "not a cert"])
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_sent(tmp_path: Path, what: str) -> None:
    """ "No such file" without the file's name, or without "Nothing was spent", leaves the user guessing about money."""
    macaroon, cert = tmp_path / "m", tmp_path / "c"
    macaroon.write_bytes(MACAROON)
    cert.write_text("-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n")
    culprit = cert if "cert" in what else macaroon
    if what.startswith("empty"):
        culprit.write_bytes(b"")
    elif what == "not a macaroon":
        culprit.write_bytes(b"x" * 100_000)
    elif what == "not a cert":
        culprit.write_text("hello")
    else:
        culprit.unlink()
    client = LndClient("127.0.0.1", 1, macaroon_path=macaroon, tls_cert_path=cert)
    with pytest.raises(FundingError, match="Nothing was spent") as caught:
        client.get_info()
    assert str(culprit) in str(caught.value)
    assert caught.value.spent is False
    assert isinstance(caught.value, requests.RequestException)
    answer = client.send("lnbc1", payment_hash=b"\0" * 32, max_fee_msat=1, timeout_s=1)
    assert answer.reply is WalletReply.REFUSED
    assert client.track(b"\0" * 32, timeout_s=1, follow=True).reply is WalletReply.UNKNOWN


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/.lnd/… is how everybody writes it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FundingError, match="holds no macaroon"):
        LndClient("127.0.0.1", 1, macaroon_path="~/empty").get_info()


def test_a_certificate_that_is_none_is_told() -> None:
    """grpc's own word for it is a handshake that fails for no reason."""
    pem = "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"
    with pytest.raises(FundingError, match=r"certificate.*Nothing was spent"):
        LndClient("127.0.0.1", 1, macaroon_hex=SECRET, tls_cert_pem=pem).get_info()


def test_the_macaroon_is_in_no_repr_and_no_pickle() -> None:
    """Sessions are logged, and pickled to workers and caches: a macaroon there is a wallet there."""
    client = LndClient("localhost", macaroon_hex=SECRET)
    source = Funding.lightning_lnd(client=client, network="bitcoin")
    assert repr(client) == "LndClient(localhost:10009)"
    for thing in (repr(client), repr(source), str(vars(pickle.loads(pickle.dumps(client))))):
        assert SECRET not in thing
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert SECRET.encode() not in pickle.dumps(source, protocol)


def test_an_unpickled_client_keeps_its_paths() -> None:
    """A worker process goes on with the files of the machine."""
    again = pickle.loads(pickle.dumps(LndClient("::1", 1234, macaroon_path="~/m", tls_cert_path="c", timeout_seconds=5)))
    assert (again.grpc_host, again.grpc_port, again.macaroon_path, again.tls_cert_path, again.timeout_seconds) == (
        "::1",
        1234,
        "~/m",
        "c",
        5,
    )


def test_an_unpickled_client_without_its_secret_says_so_and_sends_nothing() -> None:
    """A call without macaroon, or a crash inside grpc, would hide that the secret just wasn't carried along."""
    again = pickle.loads(pickle.dumps(LndClient("127.0.0.1", 1, macaroon_hex=SECRET)))
    with pytest.raises(FundingError, match=r"isn't pickled\. Nothing was spent"):
        again.get_info()
    assert again.send("lnbc1", payment_hash=b"\0" * 32, max_fee_msat=1, timeout_s=1).reply is WalletReply.REFUSED


def test_a_copy_is_the_same_client() -> None:
    """A copied session must still be able to pay, over the same connection."""
    client = LndClient("localhost", macaroon_hex=SECRET)
    assert copy.copy(client) is client
    assert copy.deepcopy({"a": client})["a"] is client


@pytest.mark.parametrize(
    ("uri", "host", "port"),
    [
        (f"lndconnect://example.com:11009?cert={_b64(CERT)}&macaroon={_b64(MACAROON)}", "example.com", 11009),
        (f"lndconnect://example.com?macaroon={_b64(MACAROON)}", "example.com", 10009),
        (f"lndconnect://[::1]:10010/?macaroon={_b64(MACAROON)}", "::1", 10010),
        (f"lndconnect://10.0.0.1:8?macaroon={base64.urlsafe_b64encode(MACAROON).decode()}&alias=x", "10.0.0.1", 8),
        (f"  lndconnect://h:1?macaroon={_b64(MACAROON)}\n", "h", 1),
    ],
)
def test_lndconnect_uris_of_the_field_are_understood(uri: str, host: str, port: int) -> None:
    """It is how node boxes hand over a node: a QR code's text, pasted."""
    client = LndClient.from_lndconnect(uri)
    assert (client.grpc_host, client.grpc_port, client._macaroon_hex) == (host, port, SECRET)
    assert (client.tls_cert_pem is not None) == ("cert=" in uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        f"https://h:1?macaroon={_b64(MACAROON)}",
        f"lndconnect://?macaroon={_b64(MACAROON)}",
        f"lndconnect://h:port?macaroon={_b64(MACAROON)}",
        f"lndconnect://h:99999?macaroon={_b64(MACAROON)}",
        f"lndconnect://{_b64(MACAROON)}@h:1?macaroon={_b64(MACAROON)}",
        f"lndconnect://h:1/{_b64(MACAROON)}?macaroon={_b64(MACAROON)}",
        "lndconnect://h:1",
        "lndconnect://h:1?macaroon=",
        f"lndconnect://h:1?macaroon={_b64(MACAROON)}&macaroon={_b64(MACAROON)}",
        f"lndconnect://h:1?macaroon={_b64(MACAROON)}!",
        f"lndconnect://h:1?macaroon={_b64(MACAROON)}&cert=",
        f"lndconnect://h:1?macaroon={_b64(MACAROON)}A&cert=AAAAA",
        f"lndconnect://[::1:1?macaroon={_b64(MACAROON)}",
    ],
)
def test_a_broken_lndconnect_uri_is_refused_without_repeating_it(uri: str) -> None:
    """Half a macaroon accepted is a riddle later; one repeated in the message is a wallet in the log."""
    with pytest.raises(FundingError, match="Nothing was spent") as caught:
        LndClient.from_lndconnect(uri)
    assert _b64(MACAROON) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_environment_names_the_node() -> None:
    """A legacy script is configured by variables alone."""
    lnd = {"LND_GRPC_HOST": "node:10010", "LND_TLS_CERT_PATH": "c", "LND_MACAROON_PATH": "m"}
    polar = {"POLAR_LND_HOST": "https://127.0.0.1", "POLAR_LND_TLS_CERT": "pc", "POLAR_LND_MACAROON": "pm"}
    uri = {"ROUTEWEILER_LNDCONNECT": f"lndconnect://u:1?macaroon={_b64(MACAROON)}"}

    def found(environ: dict[str, str]) -> tuple[object, ...]:
        client = LndClient.from_env(environ)
        return client.grpc_host, client.grpc_port, client.macaroon_path, client.tls_cert_path

    assert found(lnd) == ("node", 10010, "m", "c")
    assert found(lnd | {"LND_GRPC_HOST": "[::1]:10010"}) == ("::1", 10010, "m", "c")
    assert found(lnd | {"LND_GRPC_HOST": "node", "LND_TLS_CERT_PATH": ""}) == ("node", 10009, "m", None)
    assert found(polar) == ("127.0.0.1", 10009, "pm", "pc")
    assert found(lnd | polar) == ("node", 10010, "m", "c")
    assert found(lnd | uri)[:2] == ("u", 1)
    assert found(polar | {"LND_GRPC_HOST": ""})[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, ["ROUTEWEILER_LNDCONNECT", "LND_GRPC_HOST", "LND_MACAROON_PATH", "POLAR_LND_HOST"]),
        ({"LND_GRPC_HOST": "h:1"}, ["LND_MACAROON_PATH"]),
        ({"LND_GRPC_HOST": "h:1:2", "LND_MACAROON_PATH": "m"}, ["LND_GRPC_HOST"]),
        ({"POLAR_LND_HOST": "h:1"}, ["POLAR_LND_MACAROON"]),
    ],
)
def test_a_lacking_variable_is_named(environ: dict[str, str], named: list[str]) -> None:
    """ "No node is configured" alone sends the user to the source code."""
    with pytest.raises(FundingError) as caught:
        LndClient.from_env(environ)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize(
    ("amount_msat", "cap_msat"), [(1, 10_000), (10_000, 10_000), (200_000, 10_000), (200_001, 10_001), (1_000_000, 50_000)]
)
def test_the_default_fee_cap_is_five_percent_rounded_up_and_never_starves_small_payments(amount_msat: int, cap_msat: int) -> None:
    """5 % of 10 sat is less than lnd's default fee for a single hop: nothing small could be paid."""
    assert default_fee_cap_msat(amount_msat) == cap_msat


def test_networks_have_our_names() -> None:
    """An invoice's network is compared with the node's: a wrong name refuses every payment."""
    assert [network_of(name) for name in ("mainnet", "testnet", "testnet4", "signet", "regtest", "simnet")] == [
        "bitcoin",
        "bitcoin-testnet",
        "bitcoin-testnet",
        "bitcoin-signet",
        "bitcoin-regtest",
        "bitcoin-simnet",
    ]
