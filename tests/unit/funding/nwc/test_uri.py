"""A wallet's URI is read for its key, relays and secret; what can't be one is refused without repeating the secret."""

from __future__ import annotations

import copy
import pickle

import pytest

from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.nwc.client import NwcClient
from routeweiler_sync.funding.nwc.uri import RELAYS_MAX, parse_uri

KEY, SECRET = "ab" * 32, "71a8c14c1407c113601079c4302dab36460f0ccd0ad506f1f2dc73b5100e4f3c"
RELAY = "relay=wss%3A%2F%2Frelay.example"
GOOD = f"nostr+walletconnect://{KEY}?{RELAY}&secret={SECRET}"


@pytest.mark.parametrize(
    "uri",
    [
        GOOD,
        f"  {GOOD}\n",
        f"nostr+walletconnect:{KEY}?{RELAY}&secret={SECRET}",
        f"nostrwalletconnect://{KEY}?{RELAY}&secret={SECRET}",
        f"NOSTR+WALLETCONNECT://{KEY.upper()}/?{RELAY}&secret={SECRET.upper()}&lud16=me%40example.com",
        f"nostr+walletconnect://{KEY}?secret={SECRET}&relay=wss://relay.example",
        f"nostr+walletconnect://{KEY}?{RELAY}&{RELAY}%2F&secret={SECRET}",
    ],
)
def test_all_spellings_name_the_same_connection(uri: str) -> None:
    """Wallets write the URI in several ways, and users copy it with blanks."""
    read = parse_uri(uri)
    assert (read.wallet_key, read.relays, read.secret) == (KEY, ("wss://relay.example/",), SECRET)


def test_relays_keep_their_order() -> None:
    """They are tried in turn; the wallet names its best one first."""
    read = parse_uri(f"{GOOD}&relay=wss://b.example/path?x=1&relay=wss://[2001:db8::1]:7777")
    assert read.relays[1:] == ("wss://b.example/path?x=1", "wss://[2001:db8::1]:7777/")


@pytest.mark.parametrize(
    "uri",
    [
        None,
        b"nostr+walletconnect://",
        "",
        SECRET,
        f"https://relay.example/?secret={SECRET}",
        f"lndconnect://host:10009?macaroon={SECRET}",
        f"nostr+walletconnect://{KEY[:-1]}?{RELAY}&secret={SECRET}",
        f"nostr+walletconnect://npub1{SECRET}?{RELAY}&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?{RELAY}",
        f"nostr+walletconnect://{KEY}?{RELAY}&secret={SECRET[:-1]}",
        f"nostr+walletconnect://{KEY}?{RELAY}&secret={SECRET}&secret={'12' * 32}",
        f"nostr+walletconnect://{KEY}?{RELAY}&secret=nsec1{SECRET}",
        f"nostr+walletconnect://{KEY}?{RELAY}&secret={'0' * 64}",
        f"nostr+walletconnect://{KEY}?{RELAY}&secret={'f' * 64}",
        f"nostr+walletconnect://{SECRET}?{RELAY}&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay=https://relay.example&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay={SECRET}&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay=wss://me:{SECRET}@relay.example&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay=wss://relay.example:99999&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay=wss://relay.example/a%0ab&secret={SECRET}",
        f"nostr+walletconnect://{KEY}?relay=ws://relay.example&secret={SECRET}",
        GOOD + "".join(f"&relay=wss://{number}.example" for number in range(RELAYS_MAX)),
        GOOD + "&x=" + "y" * 5_000,
        GOOD + "&x=y" * 200,
    ],
)
def test_what_is_no_uri_is_refused_without_its_secret(uri: object) -> None:
    """A misplaced secret, or a URI cut in two, must not end in a log by way of the error about it."""
    with pytest.raises(ValueError) as caught:
        NwcClient(uri)  # type: ignore[arg-type]
    text = f"{caught.value}{caught.value!r}".lower()
    assert SECRET[:40] not in text
    assert "uri" in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "relay.localhost", "abc.onion"])
def test_a_relay_near_by_needs_no_tls(host: str) -> None:
    """Nobody listens in on the way to this machine itself, and Tor encrypts."""
    assert parse_uri(f"nostr+walletconnect://{KEY}?relay=ws://{host}:7777&secret={SECRET}").relays == (f"ws://{host}:7777/",)


def test_a_relay_without_tls_is_taken_where_the_user_says_so() -> None:
    """In a private network a relay may have no certificate."""
    uri = f"nostr+walletconnect://{KEY}?relay=ws://relay.lan&secret={SECRET}"
    assert parse_uri(uri, {"ROUTEWEILER_ALLOW_HTTP_WALLET": "1"}).relays == ("ws://relay.lan/",)
    with pytest.raises(ValueError, match="ROUTEWEILER_ALLOW_HTTP_WALLET=1"):
        parse_uri(uri, {"ROUTEWEILER_ALLOW_HTTP_WALLET": "0"})


@pytest.mark.parametrize("seconds", [0, -1, True, "60", float("nan"), 8 * 86_400])
def test_a_timeout_is_a_number_of_seconds(seconds: object) -> None:
    """A timeout that can't be would surface with the first payment, not here."""
    with pytest.raises(ValueError, match="timeout_seconds"):
        NwcClient(GOOD, timeout_seconds=seconds)  # type: ignore[arg-type]


def test_the_secret_is_in_no_text_of_a_client() -> None:
    """repr goes to notebooks, pickles to disks. A token in a relay's path is left out too."""
    client = NwcClient(GOOD + "&relay=wss://relay.example/token/abcdef?key=hidden")
    public = {key: value for key, value in vars(client).items() if not key.startswith("_")}
    assert SECRET not in f"{client!r}{client}{public}{parse_uri(GOOD)!r}"
    assert "token" not in repr(client)
    pickled = pickle.dumps(client)
    assert SECRET.encode() not in pickled
    assert bytes.fromhex(SECRET) not in pickled
    assert copy.copy(client) is client
    with pytest.raises(FundingError, match=r"NwcClient\(uri\)") as caught:
        pickle.loads(pickled).check_ready(1)
    assert caught.value.spent is False


def test_the_environment_names_a_wallet() -> None:
    """Its errors name the variable, and repeat nothing of it."""
    assert NwcClient.from_env({"NWC_URL": GOOD}).relays == ("wss://relay.example/",)
    for value in ("", SECRET, GOOD[:-1], f"nostr+walletconnect://{KEY}?relay=ws://relay.example&secret={SECRET}"):
        with pytest.raises(FundingError, match="NWC_URL") as caught:
            NwcClient.from_env({"NWC_URL": value})
        assert SECRET[:40] not in str(caught.value)


@pytest.mark.parametrize("mark", ['"', "'", "export NWC_URL=", "lightning:"])
def test_what_stands_before_a_uri_in_the_variable_is_told(mark: str) -> None:
    """It was said to look like such a URI, and to belong where it is."""
    with pytest.raises(FundingError, match="NWC_URL has something before the URI") as caught:
        NwcClient.from_env({"NWC_URL": f"{mark}{GOOD}{mark}"})
    assert GOOD.rpartition("=")[2] not in str(caught.value)


def test_the_older_scheme_is_read_in_the_variable_too() -> None:
    """`NwcClient` reads it."""
    older = GOOD.replace("nostr+walletconnect", "nostrwalletconnect")
    assert NwcClient.from_env({"NWC_URL": older}).relays == NwcClient(older).relays


def test_a_relay_without_tls_is_named_by_its_host_alone() -> None:
    """Else a token in the relay's path or query would be in an error's text."""
    with pytest.raises(ValueError, match=r"relay\.example") as refused:
        parse_uri(f"nostr+walletconnect://{'ab' * 32}?relay=ws://relay.example/t0ken?key=k3y&secret={'01' * 32}", {})
    assert "t0ken" not in str(refused.value)
    assert "k3y" not in str(refused.value)
