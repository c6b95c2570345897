"""Which wallet the environment names: every variable, and what is said of values that can't be used."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from routeweiler_sync._core import env_vars
from routeweiler_sync.config import environment, wallets
from routeweiler_sync.config.wallets import WALLETS
from routeweiler_sync.errors import FundingError
from routeweiler_sync.funding.lnbits import environment as lnbits
from routeweiler_sync.funding.lnd import environment as lnd
from routeweiler_sync.funding.nwc import environment as nwc
from routeweiler_sync.testing import fake_lnd

MACAROON = "0201036c6e64" + "ab" * 60
KEY = "5f" * 16
NWC = "nostr+walletconnect://" + "b8" * 32 + "?relay=wss%3A%2F%2Frelay.example&secret=" + "71" * 32
KEY_PEM, PEM = (each.decode() for each in fake_lnd._certificate(["localhost"]))
COMPLETE = {
    "lnd": {"LND_GRPC_HOST": "node:10009", "LND_MACAROON_HEX": MACAROON},
    "lnd-rest": {"LND_REST_URL": "https://node:8080", "LND_MACAROON_HEX": MACAROON},
    "lnbits": {"LNBITS_URL": "https://lnbits.example", "LNBITS_ADMIN_KEY": KEY},
    "nwc": {"NWC_URL": NWC},
}
#: The variables by which wallets are named, in the order in which they count.
IN_ORDER = ("ROUTEWEILER_LNDCONNECT", "LND_GRPC_HOST", "POLAR_LND_HOST", "LND_REST_URL", "LNBITS_URL", "NWC_URL")


@pytest.fixture
def set_(monkeypatch: pytest.MonkeyPatch):
    for name in env_vars.PAYER_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def set_variables(environ: dict[str, str]) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return set_variables


def name_of(environ: dict[str, str]) -> str | None:
    found = wallets.named(environ)
    return None if found is None else found.wallet.name


def wallet_of(name: str) -> wallets.Wallet:
    return next(each for each in WALLETS if each.name == name)


def test_every_variable_of_a_wallet_makes_later_sessions_pay_anew() -> None:
    """A session would go on paying from the wallet that the environment named before."""
    for wallet in WALLETS:
        assert set(wallet.variables) <= set(env_vars.PAYER_VARIABLES), wallet.name
    assert env_vars.WALLET in env_vars.PAYER_VARIABLES


def test_every_variable_of_a_wallet_is_on_the_wallets_page() -> None:
    """A variable that only the code knows is set by nobody."""
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "wallets" / "index.md").read_text(encoding="utf-8")
    for wallet in WALLETS:
        for variable in (*wallet.variables, wallet.name, env_vars.WALLET):
            assert f"`{variable}`" in page, f"the page doesn't name {variable}"


def test_the_warning_of_an_idle_session_names_every_way_to_name_a_wallet() -> None:
    """Whoever meets the first 402 learns from it alone what there is to set."""
    text = environment.no_node("https://shop.example/page")
    for wallet in WALLETS:
        assert all(name in text for way in wallet.ways for name in way)


@pytest.mark.parametrize("name", [wallet.name for wallet in WALLETS])
def test_a_wallet_is_named_by_its_variables_alone(name: str) -> None:
    """Else a legacy script would need more than variables."""
    for way in wallet_of(name).ways:
        assert name_of(dict.fromkeys(way, "x")) == name
        assert name_of({way[0]: "x"}) == name
        assert name_of(dict.fromkeys(way, "")) is None
        assert wallets.names_wallet({way[0]: "x"})


@pytest.mark.parametrize("first", range(len(IN_ORDER)))
def test_of_several_named_wallets_the_first_is_used_and_the_others_are_told(first: int) -> None:
    """Two programs with one environment would pay from two wallets, if the order were another each time."""
    found = wallets.named(dict.fromkeys(IN_ORDER[first:], "x"))
    assert found is not None
    assert found.used[:1] == IN_ORDER[first : first + 1]
    assert set(found.ignored) == set(IN_ORDER[first + 1 :])


@pytest.mark.parametrize("spelt", ["{}", " {} ", "{}\n"])
@pytest.mark.parametrize("name", [wallet.name for wallet in WALLETS])
def test_the_chosen_wallet_is_used_whatever_else_is_named(name: str, spelt: str) -> None:
    """Else a program would pay from a wallet that was meant for another."""
    everything = {key: value for each in COMPLETE.values() for key, value in each.items()}
    for chosen in (spelt.format(name), spelt.format(name.upper())):
        found = wallets.named(everything | {"ROUTEWEILER_WALLET": chosen})
        assert found is not None
        assert (found.wallet.name, found.chosen, found.ignored) == (name, True, ())


@pytest.mark.parametrize("given", ["lndd", "cln", "LNBITS!", KEY, MACAROON, NWC, "  x" * 30])
def test_an_unknown_wallet_is_no_wallet_and_not_repeated_if_it_may_be_a_secret(given: str, set_) -> None:
    """A misspelt choice must not become the first wallet in the order: money would leave another one."""
    set_(COMPLETE["lnd"] | {"ROUTEWEILER_WALLET": given})
    with pytest.raises(FundingError, match=r"ROUTEWEILER_WALLET is .* and the wallets are lnd, lnd-rest, lnbits, nwc") as caught:
        wallets.client()
    assert caught.value.spent is False
    assert (repr(given) in str(caught.value)) is (len(given) < 20)
    assert wallets.names_wallet(), "the session isn't idle: the error is raised at the first 402"
    found, problem = environment.settings()
    assert "funding" not in found
    assert "ROUTEWEILER_WALLET" in str(problem)


def test_a_key_of_lnbits_in_place_of_the_network_is_not_repeated(set_) -> None:
    """It has the form of any id, so it isn't recognized as a secret."""
    set_(COMPLETE["lnd"] | {"ROUTEWEILER_NETWORK": KEY})
    _, problem = environment.settings()
    assert "ROUTEWEILER_NETWORK is a text that isn't shown" in str(problem)
    assert KEY not in str(problem)


@pytest.mark.parametrize("name", [wallet.name for wallet in WALLETS])
def test_a_chosen_wallet_without_its_variables_says_which_are_missing(name: str, set_) -> None:
    """ "No wallet" alone would send the user to the documentation of all four."""
    wallet = wallet_of(name)
    others = {key: value for each in COMPLETE.values() for key, value in each.items() if key not in wallet.variables}
    set_(others | {"ROUTEWEILER_WALLET": name})
    with pytest.raises(FundingError) as caught:
        wallets.client()
    assert wallet.ways[0][0] in str(caught.value)
    assert caught.value.spent is False


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"LNBITS_URL": "https://lnbits.example"}, "LNBITS_ADMIN_KEY isn't"),
        ({"LNBITS_ADMIN_KEY": KEY}, "LNBITS_URL isn't"),
        ({"LNBITS_URL": "", "LNBITS_ADMIN_KEY": KEY}, "LNBITS_URL isn't"),
        ({"LND_REST_URL": "https://node:8080"}, "neither LND_MACAROON_PATH nor LND_MACAROON_HEX is"),
        ({"LND_GRPC_HOST": "node:10009"}, "neither LND_MACAROON_PATH nor LND_MACAROON_HEX is"),
        ({"POLAR_LND_HOST": "node:10009"}, "POLAR_LND_MACAROON isn't"),
    ],
)
def test_half_a_wallet_is_told_and_not_taken_for_none(environ: dict[str, str], missing: str, set_) -> None:
    """Calls would return 402s, and nobody would see that one variable is missing."""
    set_(environ)
    assert wallets.names_wallet()
    _, problem = environment.settings()
    assert missing in str(problem)
    assert KEY not in str(problem)


@pytest.mark.parametrize("name", ["LND_MACAROON_HEX", "LND_MACAROON_PATH", "LND_TLS_CERT_HEX", "POLAR_LND_MACAROON"])
def test_what_names_no_wallet_alone_is_told_by_the_warning(name: str, set_) -> None:
    """The warning would ask for variables one of which is set."""
    set_({name: MACAROON})
    assert not wallets.names_wallet()
    text = environment.no_node("https://shop.example")
    assert f"{name} alone names none." in text
    assert MACAROON not in text


def test_a_half_named_wallet_gives_way_to_a_named_one() -> None:
    """A key that another program left behind must not stop the wallet that is named."""
    assert name_of({"LNBITS_ADMIN_KEY": KEY} | COMPLETE["nwc"]) == "nwc"
    assert name_of({"LNBITS_ADMIN_KEY": KEY} | COMPLETE["lnd"]) == "lnd"


# What is read from the values


def test_the_hex_of_macaroon_and_certificate_holds_for_grpc_and_rest() -> None:
    """BTCPay and others give no files but hex."""
    der = ssl.PEM_cert_to_DER_cert(PEM)
    for certificate in (PEM.encode().hex(), der.hex(), der.hex().upper(), f" {der.hex()}\n"):
        environ = {"LND_MACAROON_HEX": MACAROON, "LND_TLS_CERT_HEX": certificate}
        over_grpc = lnd.from_environment(environ | {"LND_GRPC_HOST": "node:10009"})
        over_rest = lnd.rest_from_environment(environ | {"LND_REST_URL": "https://node:8080"})
        assert over_rest["url"] == "https://node:8080"
        for found in (over_grpc, over_rest):
            assert found["macaroon_hex"] == MACAROON
            assert found["tls_cert_path"] is None
            assert (found["tls_cert_pem"] or "").startswith("-----BEGIN CERTIFICATE-----\n")
    assert lnd.from_environment(environ | {"LND_GRPC_HOST": "node"})["grpc_port"] == 10009


def test_a_path_counts_where_the_hex_is_given_too() -> None:
    """A file can be renewed. And what works today must go on working when another program's variable appears."""
    both = {"LND_GRPC_HOST": "h", "LND_MACAROON_PATH": "m", "LND_MACAROON_HEX": MACAROON, "LND_TLS_CERT_PATH": "c"}
    found = lnd.from_environment(both | {"LND_TLS_CERT_HEX": "zz"})
    assert (found["macaroon_path"], found["tls_cert_path"]) == ("m", "c")
    assert "macaroon_hex" not in found
    assert "tls_cert_pem" not in found
    named = wallets.named(both | {"LND_TLS_CERT_HEX": "zz"})
    assert named is not None
    assert named.ignored == ("LND_TLS_CERT_HEX", "LND_MACAROON_HEX"), "doctor says so"


def test_lnbits_and_nwc_are_read() -> None:
    """White space comes along when a value is copied."""
    assert lnbits.from_environment({"LNBITS_URL": " https://l.example\n", "LNBITS_ADMIN_KEY": f"{KEY}\n"}) == {
        "url": "https://l.example",
        "admin_key": KEY,
    }
    assert nwc.from_environment({"NWC_URL": f" {NWC}\n"}) == NWC
    older = NWC.replace("nostr+walletconnect", "nostrwalletconnect")
    assert nwc.from_environment({"NWC_URL": older}) == older, "the client takes it"


SECRETS = {
    "a macaroon": MACAROON,
    "an lndconnect URI": f"lndconnect://node:10009?macaroon={'Ab9_' * 30}",
    "a Nostr Wallet Connect URI": NWC,
    "a key of LNbits": KEY,
    "a key of nostr": "nsec1" + "q9w8" * 14 + "ab",
    "a certificate": PEM,
    "a certificate in hex": PEM.encode().hex(),
    "a private key": KEY_PEM,
    "a URL with a password": "https://user:hunter2@shop.example",
    "a path": "/home/user/.lnd/payer.macaroon",
    "a secret": "Xa9" * 20,
}
RIGHT = {
    "LND_MACAROON_HEX": {"a macaroon"},
    "LND_TLS_CERT_HEX": {"a certificate in hex"},
    "LNBITS_ADMIN_KEY": {"a key of LNbits", "a secret"},
    "NWC_URL": {"a Nostr Wallet Connect URI"},
    "LND_REST_URL": set(),
    "LNBITS_URL": set(),
}
READERS = {
    "LND_REST_URL": lnd.rest_from_environment,
    "LND_MACAROON_HEX": lnd.rest_from_environment,
    "LND_TLS_CERT_HEX": lnd.rest_from_environment,
    "LNBITS_URL": lnbits.from_environment,
    "LNBITS_ADMIN_KEY": lnbits.from_environment,
    "NWC_URL": nwc.from_environment,
}


@pytest.mark.parametrize("kind", list(SECRETS))
@pytest.mark.parametrize("name", list(READERS))
def test_a_value_in_the_wrong_variable_is_recognized_and_not_repeated(name: str, kind: str) -> None:
    """Variables are swapped easily, and errors go to logs."""
    if kind in RIGHT[name]:
        pytest.skip("the right variable")
    complete = {key: value for each in COMPLETE.values() for key, value in each.items()}
    with pytest.raises(FundingError) as caught:
        READERS[name](complete | {name: SECRETS[kind]})
    text = str(caught.value)
    assert name in text
    assert re.search(rf"looks like {kind}[,.: ]", text), text
    for piece in (SECRETS[kind][5:25], SECRETS[kind][-12:]):
        assert piece not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [KEY_PEM.encode(), PEM.encode()[:150], b"0\x82\x01", b"hello"])
def test_hex_of_something_else_than_a_certificate_is_refused(content: bytes) -> None:
    """The connection would fail at night, with an error that names no variable."""
    environ = COMPLETE["lnd-rest"] | {"LND_TLS_CERT_HEX": content.hex()}
    with pytest.raises(FundingError, match="LND_TLS_CERT_HEX") as caught:
        wallets.client(environ)
    assert content.hex() not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LND_REST_URL", "http://node.example:8080"),
        ("LND_REST_URL", "node:8080"),
        ("LND_REST_URL", "ftp://node"),
        ("LNBITS_URL", "http://lnbits.example"),
        ("LNBITS_URL", f"https://lnbits.example/wallet?usr={KEY}"),
        ("LNBITS_ADMIN_KEY", "a b"),
        ("NWC_URL", "nostr+walletconnect://"),
        ("NWC_URL", NWC[:-8]),
        ("NWC_URL", NWC.replace("b8" * 32, "b8" * 31)),
    ],
)
def test_a_value_that_the_client_refuses_is_told_by_its_variable(name: str, value: str) -> None:
    """The user has set a variable, and no argument of a class."""
    wallet = next(each for each in COMPLETE if name in COMPLETE[each])
    with pytest.raises(FundingError) as caught:
        wallets.client(COMPLETE[wallet] | {name: value})
    assert name in str(caught.value)
    assert caught.value.spent is False
    for secret in (KEY, NWC[30:60], NWC[-20:-8]):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("name", ["LND_REST_URL", "LNBITS_URL", "NWC_URL"])
def test_white_space_alone_is_no_value(name: str) -> None:
    """A variable that holds a blank would be an address without a host."""
    complete = {key: value for each in COMPLETE.values() for key, value in each.items()}
    with pytest.raises(FundingError, match=name):
        READERS[name](complete | {name: "  "})


def test_an_error_of_a_client_names_the_variable_and_not_the_argument() -> None:
    """The user has set no argument."""
    from routeweiler_sync.funding.variables import made

    def refuse() -> object:
        raise ValueError("url must begin with https://; admin_key isn't hex")

    with pytest.raises(FundingError) as caught:
        made(refuse, lnbits.NAMES)
    assert caught.value.what == "LNBITS_URL must begin with https://; LNBITS_ADMIN_KEY isn't hex."
    assert caught.value.__cause__ is None
    with pytest.raises(FundingError, match="NWC_URL can't be used: the relay is odd"):
        made(lambda: (_ for _ in ()).throw(ValueError("the relay is odd")), nwc.NAMES)
