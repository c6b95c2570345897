"""The way to the node: which hosts are of the local network, which proxy the environment names, and how gRPC is told."""

from __future__ import annotations

import socket

import pytest

from routeweiler_sync.funding.lnd.route import UnresolvedError, is_local, proxy_for, route_to

PROXY = "http://bob:s3cret@proxy.example.com:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def resolve(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
    """Let the system resolve these names (``_`` stands for a dot) and no others."""

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple]:
        found = addresses.get(host.replace(".", "_"))
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


LOCAL = (
    "127.0.0.1 127.9.9.9 ::1 ::ffff:10.0.0.1 0.0.0.0 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.1.1 100.64.0.1 fe80::1 "
    "fd00::1 localhost LOCALHOST umbrel.local umbrel.local. lnd a.localhost x.home.arpa"
)


@pytest.mark.parametrize("host", LOCAL.split())
def test_hosts_of_this_machine_and_of_the_local_network_are_known(host: str) -> None:
    """Their addresses are nobody's business outside, and a proxy outside couldn't connect to them."""
    assert is_local(host)


@pytest.mark.parametrize("host", ["203.0.113.5", "8.8.8.8", "172.32.0.1", "2001:db8::1", "node.example.com", "local.example.com"])
def test_public_hosts_are_no_local_ones(host: str) -> None:
    """Behind a company's proxy there is no other way to them."""
    assert not is_local(host)


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({"http_proxy": PROXY}, "http_proxy"),
        ({"https_proxy": PROXY, "http_proxy": "http://other"}, "https_proxy"),
        ({"grpc_proxy": PROXY, "https_proxy": "http://other"}, "grpc_proxy"),
        ({"grpc_proxy": " ", "https_proxy": PROXY}, "https_proxy"),
        ({"https_proxy": "bob:s3cret@proxy.example.com:3128"}, "https_proxy"),
        ({"https_proxy": "socks5://proxy.example.com"}, None),
        ({"https_proxy": "http://["}, None),
        ({"https_proxy": PROXY, "no_grpc_proxy": "example.com"}, None),
    ],
)
def test_the_proxy_is_the_one_that_grpc_would_use(environ: dict[str, str], variable: str | None) -> None:
    """A program that has worked through a proxy goes on doing so; its password is in no text."""
    proxy = proxy_for("node.example.com", 10009, environ)
    assert (proxy and proxy.variable) == variable
    assert "s3cret" not in repr(proxy)
    if proxy is not None:
        assert proxy.shown == "proxy.example.com:3128"


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["192.0.2.1"], "ipv4:192.0.2.1:7"),
        (["192.0.2.1", "192.0.2.2"], "ipv4:192.0.2.1:7,192.0.2.2:7"),
        (["2001:db8::1"], "ipv6:[2001:db8::1]:7"),
        (["2001:db8::1", "192.0.2.1"], "ipv6:[2001:db8::1]:7,[::ffff:192.0.2.1]:7"),
        (["fe80::1%eth0"], "ipv6:[fe80::1%25eth0]:7"),
    ],
)
def test_all_addresses_of_a_name_are_tried(addresses: list[str], target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost is ::1 first on many systems, and lnd listens on 127.0.0.1."""
    resolve(monkeypatch, umbrel_local=addresses)
    route = route_to("umbrel.local", 7, timeout_s=5)
    assert (route.target, route.proxy, route.authority) == (target, None, "umbrel.local:7")
    assert ("grpc.enable_http_proxy", 0) in route.options


def test_a_name_of_a_local_address_isnt_told_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's own name server knows names that look public."""
    monkeypatch.setenv("https_proxy", PROXY)
    resolve(monkeypatch, node_example_com=["10.0.0.7"])
    assert route_to("node.example.com", 7, timeout_s=5).proxy is None


def test_a_proxys_name_is_resolved_by_the_system_and_its_login_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy's name may be one that gRPC's own resolver doesn't know."""
    monkeypatch.setenv("https_proxy", PROXY)
    resolve(monkeypatch, proxy_example_com=["10.0.0.9"])
    route = route_to("node.example.com", 7, timeout_s=5)
    assert route.target == "dns:///node.example.com:7"
    assert dict(route.options)["grpc.http_proxy"] == "http://bob:s3cret@10.0.0.9:3128"
    resolve(monkeypatch)
    with pytest.raises(UnresolvedError, match=r"proxy\.example\.com"):
        route_to("node.example.com", 7, timeout_s=5)
