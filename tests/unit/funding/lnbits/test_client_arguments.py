"""What `LnbitsClient` takes as its arguments, and what it says of those that can't be right."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.lightning import LnbitsClient
from routeweiler_sync.funding.replies import WalletReply

KEY = "01ade9b204074fc1b5e3d37d90d49480"
URL = "https://lnbits.example"
ONION = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (URL, URL),
        (f" {URL}/ ", URL),
        (f"{URL}/api/v1", URL),
        (f"{URL}/api/v1/", URL),
        (f"{URL}:5001", f"{URL}:5001"),
        (f"{URL}/money/", f"{URL}/money"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://localhost:5000", "http://localhost:5000"),
        (f"http://{ONION}", f"http://{ONION}"),
    ],
)
def test_the_address_is_that_of_the_browser(given: str, url: str) -> None:
    """It is copied from there, with or without what the API's pages add."""
    client = LnbitsClient(given, KEY)
    assert client.url == url
    assert repr(client) == f"LnbitsClient({url})"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lnbits.example",
        "http://lnbits.example",
        f"{URL}/wallet?usr={KEY}&wal={KEY}",
        f"https://user:{KEY}@lnbits.example",
        "ftp://lnbits.example",
        "lndconnect://x?macaroon=AgEDbG5k",
        None,
        7,
    ],
)
def test_an_address_that_cannot_be_right_is_refused_and_not_repeated(url: Any) -> None:
    """The address of a wallet's page has the user's id in it, which opens all of the user's wallets."""
    with pytest.raises(ValueError, match="url") as caught:
        LnbitsClient(url, KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["", "short", KEY + "\n" + KEY, f"{URL}/wallet?usr={KEY}", "0201036c6e64" + "ab" * 60, "x" * 300, "ключ" * 4, None, b"a" * 32],
)
def test_a_key_that_cannot_be_right_is_refused_and_never_repeated(key: Any) -> None:
    """What stands in its place is a secret, too, more often than not."""
    with pytest.raises(ValueError, match="admin_key") as caught:
        LnbitsClient(URL, key)
    assert KEY not in str(caught.value)
    assert "abab" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "60", None, True, 10**9])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    """Zero would mean that nothing is ever answered."""
    with pytest.raises(ValueError, match="timeout_seconds"):
        LnbitsClient(URL, KEY, timeout_seconds=timeout)


def test_a_pickled_client_keeps_the_address_and_drops_the_key() -> None:
    """Pickles lie on disks and go over wires."""
    pickled = pickle.dumps(LnbitsClient(URL, KEY, timeout_seconds=45))
    assert KEY.encode() not in pickled
    client = pickle.loads(pickled)
    assert (client.url, client.timeout_seconds) == (URL, 45)
    answer = client.send("lnbc1", payment_hash=b"\x01" * 32, max_fee_msat=0, timeout_s=1)
    assert answer.reply is WalletReply.REFUSED
    assert "keys aren't pickled" in str(answer.reason)
    assert client.track(b"\x01" * 32, timeout_s=1, follow=False).reply is WalletReply.UNKNOWN
    with pytest.raises(FundingError, match=r"Nothing was spent\. Make a client in this process"):
        client.check_ready(1)


def test_a_negative_fee_limit_is_a_fault_of_the_program() -> None:
    """It is never meant."""
    with pytest.raises(ValueError, match="max_fee_msat"):
        LnbitsClient(URL, KEY).send("lnbc1", payment_hash=b"\x01" * 32, max_fee_msat=-1, timeout_s=1)


def test_the_environment_names_the_wallet() -> None:
    """The two variables, and nothing else, are read."""
    client = LnbitsClient.from_env({"LNBITS_URL": URL, "LNBITS_ADMIN_KEY": KEY})
    assert client.url == URL
    for environ in (
        {},
        {"LNBITS_URL": URL},
        {"LNBITS_ADMIN_KEY": KEY},
        {"LNBITS_URL": "http://far.example", "LNBITS_ADMIN_KEY": KEY},
    ):
        with pytest.raises(FundingError, match="LNBITS_") as caught:
            LnbitsClient.from_env(environ)
        assert KEY not in f"{caught.value}{caught.value.__dict__}"
