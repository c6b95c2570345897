"""Which URLs of wallets are taken: a key that spends goes there, so nobody may read it on the way."""

from __future__ import annotations

import pytest

from routeweiler_sync.funding.http_url import WalletUrl, is_loopback, read_wallet_url

ONION = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid"
SECRET = "0201036c6e64" + "ab12" * 40


def read(given: object, *, allow: bool = False, default_port: int | None = None) -> WalletUrl:
    environ = {"ROUTEWEILER_ALLOW_HTTP_WALLET": "1"} if allow else {}
    return read_wallet_url("url", given, default_port=default_port, environ=environ)


@pytest.mark.parametrize(
    ("given", "shown", "host", "port"),
    [
        ("https://node.example", "https://node.example", "node.example", 443),
        ("https://node.example:8080/", "https://node.example:8080", "node.example", 8080),
        (" https://node.example/lnbits/ \n", "https://node.example/lnbits", "node.example", 443),
        ("HTTPS://NODE.example", "https://node.example", "node.example", 443),
        ("https://[::1]:8080", "https://[::1]:8080", "::1", 8080),
        ("https://münchen.example", "https://xn--mnchen-3ya.example", "xn--mnchen-3ya.example", 443),
        ("https://straße.example", "https://xn--strae-oqa.example", "xn--strae-oqa.example", 443),  # strasse.example is another's
        ("https://ＮＯＤＥ。example", "https://node.example", "node.example", 443),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000", "127.0.0.1", 5000),
        ("http://localhost", "http://localhost", "localhost", 80),
        ("http://[::1]:80", "http://[::1]", "::1", 80),
        (f"http://{ONION}.onion:8080", f"http://{ONION}.onion:8080", f"{ONION}.onion", 8080),
    ],
)
def test_a_url_of_a_wallet_is_read(given: str, shown: str, host: str, port: int) -> None:
    url = read(given)
    assert (str(url), url.host, url.port) == (shown, host, port)


def test_the_default_port_is_the_wallets() -> None:
    assert read("https://node.example", default_port=8080).port == 8080
    assert read("https://node.example:443", default_port=8080).port == 443


@pytest.mark.parametrize(
    "host", ["node.example", "10.0.0.5", "192.168.1.2", "localhost.example", "127.0.0.1.example", "onion", "0.0.0.0"]
)
def test_plain_http_is_taken_only_where_the_user_says_so(host: str) -> None:
    """Anybody on the way could read the key that spends."""
    with pytest.raises(ValueError, match="ROUTEWEILER_ALLOW_HTTP_WALLET=1"):
        read(f"http://{host}:5000")
    assert read(f"http://{host}:5000", allow=True).host == host


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"https://node.example",
        "",
        "node.example:8080",
        "node.example",
        "https://",
        "ftp://node.example",
        "https://node.example:0",
        "https://node.example:99999",
        "https://node.example:port",
        "https://node.example/?a=b",
        "https://node.example/#a",
        "https://node.example/a b",
        "https://node.example/a\r\nX-Api-Key: b",
        "https://no de.example",
        "https://nöde\u2488.example",
        f"https://{'ö' * 70}.example",
        "https://[::1",
        f"https://user:{SECRET}@node.example",
        f"https://{SECRET}@node.example",
        f"https://node.example/{SECRET}",
        f"https://node.example/?macaroon={SECRET}",
        f"https://node.example:{SECRET}",
        f"https://{SECRET}",
        SECRET,
        f"lndconnect://node.example:10009?macaroon={SECRET}",
        f"nostr+walletconnect://{'ab' * 32}?relay=wss://r.example&secret={SECRET[:64]}",
        "-----BEGIN CERTIFICATE-----\n" + SECRET,
    ],
)
def test_what_is_no_url_of_a_wallet_is_refused_without_its_secrets(given: object) -> None:
    with pytest.raises(ValueError, match=r"^url ") as caught:
        read(given)
    assert SECRET[:40] not in str(caught.value)
    assert "ab12" * 5 not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("a.localhost.", True), ("10.0.0.1", False), ("0.0.0.0", False), ("node", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
