"""A secret given in the wrong place is in no error, log, warning, trace, repr or pickle, and the error says where it belongs."""

from __future__ import annotations

import base64
import copy
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from routeweiler_sync import (
    BudgetEnvelope,
    Funding,
    FundingError,
    Ledger,
    LightningFundingSource,
    LndClient,
    Policy,
    PolicyRule,
    Routeweiler,
    RuleMatch,
    Session,
    TraceSink,
)
from routeweiler_sync.cli import main
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.cli_process import TIMEOUT_S, bare_environ

VARIABLES = (
    "LND_GRPC_HOST", "LND_MACAROON_PATH", "LND_TLS_CERT_PATH", "POLAR_LND_HOST", "POLAR_LND_MACAROON", "POLAR_LND_TLS_CERT",
    "ROUTEWEILER_LNDCONNECT", "ROUTEWEILER_NETWORK", "ROUTEWEILER_LEDGER", "ROUTEWEILER_TRACE", "ROUTEWEILER_BUDGET",
    "ROUTEWEILER_WALLET", "LND_TLS_CERT_HEX", "LND_REST_URL", "LNBITS_URL", "LNBITS_ADMIN_KEY", "NWC_URL",
)  # fmt: skip
#: The wallet that must be chosen for a variable to count.
WALLETS = {"LND_REST_URL": "lnd-rest", "LNBITS_URL": "lnbits", "LNBITS_ADMIN_KEY": "lnbits", "NWC_URL": "nwc"}


def secrets_of(lnd: FakeLnd) -> dict[str, str]:
    """The node's secrets in every form in which users have them at hand."""
    raw = Path(lnd.macaroon_path).read_bytes()
    return {
        "hex": raw.hex(),
        "HEX": raw.hex().upper(),
        "base64": base64.b64encode(raw).decode(),
        "base64url": base64.urlsafe_b64encode(raw).decode().rstrip("="),
        "hex line": raw.hex() + "\n",
        "in a folder": "/etc/" + raw.hex(),
        "lndconnect": lnd.lndconnect_uri,
        "latin-1": raw.decode("latin-1"),
        "port": f"localhost:{raw.hex()}",
    }


def pieces(secret: str) -> list[str]:
    """Parts of the secret, any of which in a text would be a leak."""
    plain = secret.strip().rpartition("macaroon=")[2].removeprefix("/etc/").removeprefix("localhost:")
    assert len(plain) > 60
    return [plain[20:50], repr(plain)[25:55]]


def texts_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)) + repr(error) + str(vars(error))


def check(texts: str, secret: str) -> None:
    for piece in pieces(secret):
        assert piece not in texts, "a secret is shown"


@pytest.mark.parametrize("form", ["hex", "HEX", "base64", "base64url", "hex line", "in a folder", "lndconnect", "latin-1", "port"])
@pytest.mark.parametrize(
    "argument", ["macaroon_path", "tls_cert_path", "tls_cert_pem", "grpc_host", "grpc_port", "timeout_seconds"]
)
def test_a_secret_in_an_argument_of_the_client_is_refused_and_not_repeated(
    argument: str, form: str, lnd: FakeLnd, make_session, paywall: Paywall, books, caplog, capfd
) -> None:
    """The client is pickled to workers, and its error goes to a log."""
    caplog.set_level(logging.DEBUG)
    secret = secrets_of(lnd)[form]
    others: dict[str, Any] = {} if argument == "macaroon_path" else {"macaroon_hex": "00"}
    with pytest.raises(ValueError) as caught:
        LndClient(**{"grpc_host": "localhost"} | others | {argument: secret})
    check(texts_of(caught.value) + caplog.text + "".join(capfd.readouterr()), secret)
    assert argument in str(caught.value)
    if form in ("hex", "base64", "lndconnect") and argument != "grpc_port" and argument != "timeout_seconds":
        assert "macaroon_hex=" in str(caught.value) or "ROUTEWEILER_LNDCONNECT" in str(caught.value) or argument == "grpc_host"


def test_a_private_key_beside_a_certificate_is_not_kept(lnd: FakeLnd) -> None:
    """A client is pickled with its certificate."""
    certificate = Path(lnd.tls_cert_path).read_text()
    key = "-----BEGIN EC PRIVATE KEY-----\n" + base64.b64encode(os.urandom(100)).decode() + "\n-----END EC PRIVATE KEY-----\n"
    client = LndClient("localhost", macaroon_hex="00", tls_cert_pem=certificate + key)
    assert b"PRIVATE" not in pickle.dumps(client)
    assert certificate.strip() in (client.tls_cert_pem or "")
    with pytest.raises(ValueError, match="private key") as caught:
        LndClient("localhost", macaroon_hex="00", tls_cert_pem=key)
    assert key[40:80] not in texts_of(caught.value)
    with pytest.raises(ValueError, match="private key"):
        LndClient("localhost", macaroon_hex="00", tls_cert_path=key)
    with pytest.raises(ValueError, match="tls_cert_pem="):
        LndClient("localhost", macaroon_hex="00", tls_cert_path=certificate)


def test_a_file_with_an_odd_name_is_used_if_it_is_there(tmp_path: Path, lnd: FakeLnd, make_session, paywall: Paywall) -> None:
    """Some systems name a secret's file by its digest."""
    odd = tmp_path / ("ab" * 32)
    odd.write_bytes(Path(lnd.macaroon_path).read_bytes())
    client = lnd.client(macaroon_path=odd)
    assert make_session(funding=[lnd.funding(client=client)]).get(paywall.url).status_code == 200


def misuses(secret: str, lnd: FakeLnd, folder: Path) -> dict[str, Callable[[], Any]]:
    """Where else a secret may land."""
    source = lnd.funding()
    plain = {"funding": [source], "ledger": folder / "ledger.db"}
    return {
        "network": lambda: Funding.lightning_lnd(client=lnd.client(), network=secret),
        "node_pubkey": lambda: LightningFundingSource(client=lnd.client(), network="bitcoin", node_pubkey=secret),
        "max_fee_msat": lambda: LightningFundingSource(client=lnd.client(), network="bitcoin", max_fee_msat=secret),  # type: ignore[arg-type]
        "lndconnect": lambda: LndClient.from_lndconnect(secret.replace("lndconnect:", "lndconect:")),
        "macaroon_hex": lambda: LndClient("h", macaroon_hex=secret + "?"),
        "ledger": lambda: Routeweiler(**{**plain, "ledger": secret}),
        "Ledger.open": lambda: Ledger.open(secret),
        "sqlite ledger": lambda: Ledger.open(f"sqlite:///{secret}"),
        "scheme of a ledger": lambda: Ledger.open(f"{secret}://x"),
        "trace": lambda: Routeweiler(**plain, trace_sink=secret),
        "TraceSink": lambda: TraceSink.jsonl(secret),
        "url_mode": lambda: TraceSink.jsonl("x", url_mode=secret),  # type: ignore[arg-type]
        "funding": lambda: Routeweiler(**{**plain, "funding": secret}),  # type: ignore[arg-type]
        "funding list": lambda: Routeweiler(**{**plain, "funding": [secret]}),
        "policy": lambda: Routeweiler(**plain, policy=secret),  # type: ignore[arg-type]
        "confirm": lambda: Routeweiler(**plain, confirm=secret),  # type: ignore[arg-type]
        "unpayable": lambda: Routeweiler(**plain, unpayable=secret),  # type: ignore[arg-type]
        "payment_timeout": lambda: Routeweiler(**plain, payment_timeout=secret),  # type: ignore[arg-type]
        "fmv_provider": lambda: Routeweiler(**plain, fmv_provider=secret),  # type: ignore[arg-type]
        "currency": lambda: BudgetEnvelope("x", cap_currency=secret),
        "a limit": lambda: BudgetEnvelope("x", cap_minor_units=secret),  # type: ignore[arg-type]
        "an unknown envelope": lambda: Ledger.open(folder / "ledger.db").envelope(secret),
        "a rule's currency": lambda: Policy(rules=[], currency=secret),
        "a rule's network": lambda: PolicyRule("x", when=RuleMatch(network=secret)),
        "a policy's file": lambda: Policy.from_file(secret),
        "a policy's key": lambda: Policy.from_dict({secret: 1}),
        "a condition's key": lambda: Policy.from_dict({"rules": [{"name": "x", "when": {secret: 1}}]}),
        "a payment": lambda: Ledger.open(folder / "ledger.db").retire(secret),
        "an origin": lambda: BudgetEnvelope("x", allowed_origins_glob=[secret + "/x"]),
        "a list": lambda: Routeweiler(**plain, policy=["\n".join(secret[at : at + 30] for at in range(0, len(secret), 30))]),  # type: ignore[arg-type]
        "a rule's url": lambda: PolicyRule("x", when=RuleMatch(url_matches=secret)),
    }


@pytest.mark.parametrize("form", ["hex", "base64", "lndconnect"])
def test_a_secret_elsewhere_is_not_repeated(form: str, lnd: FakeLnd, tmp_path: Path, caplog, monkeypatch) -> None:
    """Each of these errors would put the wallet into a log, and a ledger of that name into a backup."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    secret = secrets_of(lnd)[form]
    for name, misuse in misuses(secret, lnd, tmp_path).items():
        try:
            misuse()
        except Exception as error:
            check(texts_of(error), secret)
        else:
            pytest.fail(f"{name} was taken")
    check(caplog.text, secret)
    assert [each for each in os.listdir(tmp_path) if len(each) > 60] == []


@pytest.mark.parametrize("form", ["hex", "base64", "lndconnect", "latin-1", "port"])
@pytest.mark.parametrize("name", VARIABLES)
def test_a_secret_in_a_variable_is_not_repeated(
    name: str, form: str, lnd: FakeLnd, paywall: Paywall, tmp_path: Path, monkeypatch, caplog, capfd, recwarn
) -> None:
    """Deployments name everything by variables; a swapped pair ends in every log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    secret = secrets_of(lnd)[form]
    if name == "ROUTEWEILER_LNDCONNECT" and form == "lndconnect":
        secret += "!"
    for each in VARIABLES:
        monkeypatch.delenv(each, raising=False)
    environ = dict(lnd.environ) | {"ROUTEWEILER_LEDGER": "ledger.db", "ROUTEWEILER_TRACE": "trace.jsonl"}
    if name.startswith("POLAR"):
        polar = dict(zip(("POLAR_LND_HOST", "POLAR_LND_MACAROON", "POLAR_LND_TLS_CERT"), VARIABLES, strict=False))
        environ = {old: environ[new] for old, new in polar.items()} | {"ROUTEWEILER_LEDGER": "l.db", "ROUTEWEILER_TRACE": "t.jsonl"}
    if name in WALLETS:
        environ |= {"ROUTEWEILER_WALLET": WALLETS[name], "LNBITS_URL": "https://lnbits.example", "LNBITS_ADMIN_KEY": "5f" * 16}
    if name == "LND_TLS_CERT_HEX":
        del environ["LND_TLS_CERT_PATH"]
    environ[name] = secret
    for each, value in environ.items():
        monkeypatch.setenv(each, value.replace("\0", "\1"))
    texts = ""
    try:
        with Session() as session:
            texts += repr(session)
            for again in (session, copy.copy(session), pickle.loads(pickle.dumps(session))):
                texts += pickle.dumps(again).decode("latin-1")
                try:
                    again.get(paywall.url)
                except requests.RequestException as error:
                    texts += texts_of(error) + pickle.dumps(error).decode("latin-1")
    except (requests.RequestException, ValueError) as error:
        texts += texts_of(error)
    for file in tmp_path.rglob("*.jsonl"):
        texts += file.read_text()
    texts += caplog.text + "".join(capfd.readouterr()) + "".join(str(each.message) for each in recwarn)
    texts += "".join(os.listdir(tmp_path))
    check(texts, secret)


@pytest.mark.parametrize("name", ["LND_MACAROON_PATH", "LND_GRPC_HOST", "ROUTEWEILER_LEDGER", "ROUTEWEILER_TRACE"])
def test_a_command_repeats_no_secret(name: str, lnd: FakeLnd, paywall: Paywall, tmp_path: Path) -> None:
    """What a command prints is kept by whatever started it."""
    secret = secrets_of(lnd)["hex"]
    environ = lnd.environ | {"ROUTEWEILER_LEDGER": str(tmp_path / "l.db"), "ROUTEWEILER_TRACE": str(tmp_path / "t.jsonl")}
    done = subprocess.run(
        [sys.executable, "-m", "routeweiler_sync", "get", "--json", paywall.url],
        env=bare_environ(**environ | {name: secret}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    check(done.stdout + done.stderr + "".join(os.listdir(tmp_path)), secret)


def test_a_policy_file_that_holds_a_secret_is_no_attribute_of_the_error(lnd: FakeLnd, tmp_path: Path) -> None:
    """Error reporters write down the attributes of an error and of its cause."""
    secret = secrets_of(lnd)["hex"]
    (tmp_path / "policy.json").write_text(secret)
    with pytest.raises(ValueError, match="isn't JSON") as caught:
        Policy.from_file(tmp_path / "policy.json")
    check(texts_of(caught.value) + str(vars(caught.value.__context__ or caught.value)), secret)


def test_the_context_of_an_error_about_an_lndconnect_uri_repeats_nothing(lnd: FakeLnd) -> None:
    """``from None`` keeps the context, and error reporters follow it."""
    secret = secrets_of(lnd)["hex"]
    with pytest.raises(FundingError) as caught:
        LndClient.from_lndconnect(f"lndconnect://h:{secret}?macaroon=AA")
    check(repr(caught.value.__context__) + texts_of(caught.value), secret)


@pytest.mark.parametrize("made", [str, Path])
def test_a_url_with_a_password_is_no_path_of_a_trace(made: Callable[[str], Any], tmp_path: Path, monkeypatch) -> None:
    """The ledger's URL in place of the trace: a file of that name would go into a backup."""
    monkeypatch.chdir(tmp_path)
    url = made("postgresql://bob:Hunter2@db/ledger")
    with pytest.raises(ValueError, match="ROUTEWEILER_LEDGER") as caught:
        TraceSink.jsonl(url)
    assert "Hunter2" not in texts_of(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [["{}"], ["tokens", "{}"], ["payments", "list", "{}"], ["get", "--max-sats", "{}", "http://x"], ["get", "http://x", "{}"]],
)
def test_wrong_usage_repeats_no_secret(words: list[str], lnd: FakeLnd) -> None:
    """click repeats the argument that it can't use, and a job's log keeps that."""
    secret = secrets_of(lnd)["hex"]
    result = CliRunner().invoke(main, [each.format(secret) for each in words])
    assert result.exit_code == 2
    check(result.output, secret)
