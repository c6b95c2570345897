"""Macaroon and certificate are renewed under a running program: their files are read again, in whatever form they come."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from routeweiler_sync import FundingError, LndClient, Routeweiler
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing.fake_lnd import _certificate

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 30.0


def in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def replaced(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    os.replace(beside, path)


WAYS = [in_place, replaced]


def answers(client: LndClient) -> bool:
    """Whether one of the next two questions is answered."""
    for _ in range(2):
        try:
            client.check_ready(TIMEOUT_S)
            client.get_info()
        except FundingError:
            continue
        return True
    return False


def renew_certificate(lnd: FakeLnd) -> bytes:
    """Restart the node with a new certificate, and return it."""
    lnd.stop()
    lnd._key_pem, lnd._cert_pem = _certificate(["localhost", "127.0.0.1"])
    lnd.start()
    return lnd._cert_pem


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_macaroon_that_replaces_a_refused_one_is_read(lnd: FakeLnd, tmp_path: Path, write: Callable, restarts: bool) -> None:
    """Macaroons that expire are renewed by a job; the program that pays runs on."""
    path = tmp_path / "payer.macaroon"
    path.write_bytes(Path(lnd.bake_refused_macaroon("macaroon has expired")).read_bytes())
    client = lnd.client(macaroon_path=path)
    with pytest.raises(FundingError, match="expired"):
        client.get_info()
    write(path, Path(lnd.bake_macaroon()).read_bytes())
    if restarts:
        lnd.restart()
    assert answers(client)


@pytest.mark.parametrize("write", WAYS)
def test_an_order_goes_out_with_the_macaroon_that_is_in_the_file_now(
    lnd: FakeLnd, tmp_path: Path, write: Callable, make_session: Callable[..., Routeweiler]
) -> None:
    """The node's key is asked for once: after that the order is the first to meet an old macaroon."""
    path = tmp_path / "payer.macaroon"
    path.write_bytes(Path(lnd.bake_macaroon()).read_bytes())
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        session = make_session(funding=[lnd.funding(client=lnd.client(macaroon_path=path))])
        assert session.get(wall.url_for("/1")).status_code == 200
        lnd._macaroons[path.read_bytes().hex()] = "cannot retrieve macaroon: cannot get macaroon: root key with id 0 doesn't exist"
        with pytest.raises(FundingError, match="revoked") as caught:
            session.get(wall.url_for("/2"))
        assert caught.value.spent is False
        write(path, Path(lnd.bake_macaroon()).read_bytes())
        assert session.get(wall.url_for("/2")).status_code == 200


@pytest.mark.parametrize("write", WAYS)
def test_a_nodes_new_certificate_is_read_under_a_running_channel(lnd: FakeLnd, tmp_path: Path, write: Callable) -> None:
    """lnd makes a new one each year (tlsautorefresh): the old pin would be asked for until the program is restarted."""
    path = tmp_path / "tls.cert"
    path.write_bytes(Path(lnd.tls_cert_path).read_bytes())
    client = lnd.client(tls_cert_path=path)
    assert answers(client)
    write(path, renew_certificate(lnd))
    assert answers(client)
    write(path, renew_certificate(lnd))
    invoice = lnd.invoice(10_000)
    sent = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=0, timeout_s=TIMEOUT_S)
    assert sent.reply is WalletReply.SUCCEEDED
    write(path, renew_certificate(lnd))
    assert client.track(invoice.payment_hash, timeout_s=TIMEOUT_S, follow=True).reply is WalletReply.SUCCEEDED


def test_a_certificate_that_comes_after_the_node_has_it_is_read(lnd: FakeLnd, tmp_path: Path) -> None:
    """The copy arrives minutes after the restart: the calls in between fail, and those after it don't."""
    path = tmp_path / "tls.cert"
    path.write_bytes(Path(lnd.tls_cert_path).read_bytes())
    client = lnd.client(tls_cert_path=path)
    assert answers(client)
    fresh = renew_certificate(lnd)
    with pytest.raises(FundingError, match="isn't the one pinned"):
        client.check_ready(TIMEOUT_S)
    path.write_bytes(fresh)
    assert answers(client)


def test_files_that_are_empty_or_cut_off_for_a_moment_stop_nothing(lnd: FakeLnd, tmp_path: Path) -> None:
    """A job that writes in place empties the file first."""
    macaroon, cert = tmp_path / "payer.macaroon", tmp_path / "tls.cert"
    whole = {macaroon: Path(lnd.macaroon_path).read_bytes(), cert: Path(lnd.tls_cert_path).read_bytes()}
    for path, data in whole.items():
        path.write_bytes(data)
    client = lnd.client(macaroon_path=macaroon, tls_cert_path=cert)
    client.get_info()
    for cut in (0, 1, 40):
        for path, data in whole.items():
            path.write_bytes(data[:cut])
        client.close()
        client.get_info()
    macaroon.unlink()
    client.get_info()


@pytest.mark.parametrize("culprit", ["payer.macaroon", "tls.cert"])
def test_a_file_that_was_cut_off_from_the_start_is_read_once_it_is_whole(lnd: FakeLnd, tmp_path: Path, culprit: str) -> None:
    """The program starts while the files are copied."""
    paths = {"payer.macaroon": lnd.macaroon_path, "tls.cert": lnd.tls_cert_path}
    for name, source in paths.items():
        data = Path(source).read_bytes()
        (tmp_path / name).write_bytes(data[:30] if name == culprit else data)
    client = lnd.client(macaroon_path=tmp_path / "payer.macaroon", tls_cert_path=tmp_path / "tls.cert")
    with pytest.raises(FundingError, match=culprit):
        client.get_info()
    (tmp_path / culprit).write_bytes(Path(paths[culprit]).read_bytes())
    assert answers(client)


def test_an_unpickled_client_reads_renewed_files(lnd: FakeLnd, tmp_path: Path) -> None:
    """Workers get their session by pickle."""
    path = tmp_path / "payer.macaroon"
    path.write_bytes(Path(lnd.bake_refused_macaroon()).read_bytes())
    client = pickle.loads(pickle.dumps(lnd.client(macaroon_path=path)))
    with pytest.raises(FundingError):
        client.get_info()
    path.write_bytes(Path(lnd.bake_macaroon()).read_bytes())
    assert answers(client)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_forked_child_reads_renewed_files(lnd: FakeLnd, tmp_path: Path) -> None:
    """gunicorn's workers live longer than a macaroon."""
    path = tmp_path / "payer.macaroon"
    path.write_bytes(Path(lnd.bake_macaroon()).read_bytes())
    code = """
import os, sys
from routeweiler_sync import LndClient
client = LndClient.from_env()
client.get_info()
os.replace(sys.argv[2], sys.argv[1])
pid = os.fork()
if pid == 0:
    client.get_info()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    fresh = tmp_path / "fresh"
    fresh.write_bytes(Path(lnd.bake_macaroon()).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(fresh)],
        cwd=ROOT,
        env={**os.environ, **lnd.environ, "LND_MACAROON_PATH": str(path)},
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 7


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "hex": lambda data: data.hex().encode(),
    "hex in capitals, with a newline": lambda data: data.hex().upper().encode() + b"\n",
    "hex in lines": lambda data: b"\r\n".join(data.hex()[at : at + 64].encode() for at in range(0, len(data.hex()), 64)),
    "hex after a mark": lambda data: b"\xef\xbb\xbf" + data.hex().encode() + b"\r\n",
    "hex in UTF-16": lambda data: (data.hex() + "\r\n").encode("utf-16"),
    "base64": lambda data: base64.b64encode(data) + b"\n",
    "base64 in lines": lambda data: base64.encodebytes(data),
    "base64url without padding": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_macaroon_file_may_hold_hex_or_base64(lnd: FakeLnd, tmp_path: Path, form: str) -> None:
    """Web interfaces show the macaroon as text, and people save what they see."""
    path = tmp_path / "payer.macaroon"
    path.write_bytes(FORMS[form](Path(lnd.macaroon_path).read_bytes()))
    assert lnd.client(macaroon_path=path).get_node_pubkey() == lnd.node_pubkey


@pytest.mark.parametrize("path", ["a\0b", "caf\udce9", "x" * 5_000, "~nobody-of-this-name/x", "/", "/dev/null"])
@pytest.mark.parametrize("argument", ["macaroon_path", "tls_cert_path"])
def test_a_path_that_no_file_can_have_is_an_error_of_this_package(lnd: FakeLnd, path: str, argument: str) -> None:
    """A bare ValueError out of a GET, with no word about the money."""
    client = lnd.client()
    setattr(client, argument, path)
    invoice = lnd.invoice(10_000)
    with pytest.raises(FundingError) as caught:
        client.get_info()
    assert caught.value.spent is False
    str(caught.value).encode()
    sent = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=0, timeout_s=TIMEOUT_S)
    assert sent.reply is WalletReply.REFUSED
