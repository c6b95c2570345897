"""Origins and paths of URLs: read as requests reads them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import requests
from hypothesis import given, settings, strategies as st
from urllib3.util import parse_url

from routeweiler_sync._core.urls import (
    MAX_SCOPE_CHARS,
    is_in_the_clear,
    leads_to_one_server,
    origin_at,
    origin_of,
    path_of,
    without_userinfos,
)


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://pages.example", "http://pages.example", "/"),
        ("HTTP://Pages.Example:80/A?q=/x#f", "http://pages.example", "/A"),
        ("https://pages.example:443/a/b/", "https://pages.example", "/a/b/"),
        ("https://pages.example:80/", "https://pages.example:80", "/"),
        ("http://pages.example:443?q", "http://pages.example:443", "/"),
        ("http://user:pass@pages.example:8081/", "http://pages.example:8081", "/"),
        ("http://user@evil.example:pass@pages.example/", "http://pages.example", "/"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080", "/x"),
        ("http://[::1]/", "http://[::1]", "/"),
        ("http://127.0.0.1:8081/x%20y", "http://127.0.0.1:8081", "/x%20y"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example", "/%C3%BC"),
        ("http://pages.example./", "http://pages.example.", "/"),
        ("http://pages.example#@evil.example/", "http://pages.example", "/"),
        ("http://pages.example\\@evil.example/x", "http://pages.example", "/%5C@evil.example/x"),
    ],
)
def test_an_origin_is_where_requests_connects_to(url: str, origin: str, path: str) -> None:
    """If failing: a token goes to a host that never issued it."""
    prepared = requests.Request("GET", url).prepare().url
    assert prepared is not None
    for each in (url, prepared):
        assert (origin_of(each), path_of(each)) == (origin, path)


@pytest.mark.parametrize(
    ("url", "headers", "clear"),
    [
        ("http://shop.example/x?y", {}, True),
        ("http://shop.example/x", {"Accept": "other.example"}, True),
        ("http://shop.example/x", {"Host": "shop.example"}, True),
        ("http://shop.example/x", {"host": "SHOP.example.:80"}, True),
        ("http://shop.example.:80/x", {b"HOST": b" shop.example "}, True),
        ("https://shop.example/x", {"Host": "shop.example:443"}, True),
        ("https://shop.example:8443/x", {"Host": "shop.example:8443"}, True),
        ("http://[::1]:81/x", {"Host": "[::1]:81"}, True),
        ("http://b\u00fccher.example/x", {"Host": "xn--bcher-kva.example"}, True),
        ("http://user:word@shop.example/x", {"Host": "shop.example"}, True),
        ("http://shop.example/x", {"Host": "other.example"}, False),
        ("http://shop.example/x", {b"hOST": b"other.example"}, False),
        ("http://shop.example/x", {"Host": "shop.example:81"}, False),
        ("https://shop.example:8443/x", {"Host": "shop.example"}, False),
        ("http://shop.example/x", {"Host": "shop.example:443"}, False),
        ("http://shop.example/x", {"Host": ""}, False),
        ("http://shop.example/x", {"Host": "shop.example, other.example"}, False),
        ("http://shop.example/x", {"Host": "other.example@shop.example"}, False),
        ("http://shop.example/x", {"Host": "shop.example/other"}, False),
        ("http://shop.example/x", {"Host": "http://shop.example"}, False),
        ("http://shop.example/x", {"Host": "shop.example#"}, False),
        ("http://shop.example/x", {"Host": "shop.example:port"}, False),
        ("http://127.0.0.1/x", {"Host": "localhost"}, False),
        ("http://shop.example/x", {"Accept": "*/*", "HOST ": "other.example"}, False),
        ("http://shop.example/x", {"X-Forwarded-Host": "other.example"}, True),
        ("http://shop.example/x", {"X-Forwarded-Host": "shop.example", "Host": "other.example"}, False),
        ("http://shop.example/x", {b"X-Name": b"host", "Host": "other.example"}, False),
        ("http://shop.example/x", None, True),
        ("http://shop.example\\@other.example/x", {}, False),
        ("http://shop.example/a\\b", {}, True),
    ],
)
def test_a_host_header_of_another_name_makes_it_unclear_whose_token_goes_along(url: str, headers: Any, clear: bool) -> None:
    """If failing: one server of a shared address gets the tokens of another."""
    assert leads_to_one_server(url, headers) is clear


#: What URLs are made of, and what two readers of one may disagree on.
_PIECES = [
    "/",
    ".",
    "..",
    "//",
    "a",
    "B7",
    "-_~",
    "%2e",
    "%2F",
    "?",
    "#",
    "@",
    ":",
    ":80",
    "\\",
    ";x=1",
    "é",
    " ",
    "\n",
    "[::1]",
    "x.json",
]


@pytest.mark.slow
@given(st.lists(st.sampled_from(_PIECES), max_size=8), st.sampled_from(["http://", "https://", "HTTP://"]))
@settings(max_examples=2_000)
def test_a_quick_look_at_a_url_sees_what_its_parser_sees(pieces: list[str], scheme: str) -> None:
    """If failing: a path, or an origin, is taken for another, and a token goes along where it wasn't learned."""
    url = scheme + "pages.example" + "".join(pieces)
    for each in (url, url + "/next", scheme + "".join(pieces)):
        try:
            slow = parse_url(each)
            expected = (origin_of(each), _key(slow.path or "/"))
        except ValueError:
            for _ in range(2):
                with pytest.raises(ValueError):
                    origin_at(each), path_of(each)
            continue
        for _ in range(2):  # the second time it is remembered
            assert (origin_at(each), path_of(each)) == expected


def _key(path: str) -> str:
    return path if path.isascii() and path.isprintable() else "sha256:" + hashlib.sha256(path.encode()).hexdigest()


@pytest.mark.parametrize("path", ["/" + "x" * MAX_SCOPE_CHARS, "/" + "x" * 5_000])
def test_a_long_path_is_a_short_key(path: str) -> None:
    """If failing: PostgreSQL can't index what was learned of the path, and that its token was taken is lost with it."""
    key = path_of(f"http://pages.example{path}?q")
    assert key.startswith("sha256:")
    assert len(key) <= MAX_SCOPE_CHARS
    assert key == path_of(f"http://pages.example{path}")
    assert key != path_of(f"http://pages.example{path}y")
    whole = "/" + "x" * (MAX_SCOPE_CHARS - 1)
    assert path_of(f"http://pages.example{whole}") == whole


@pytest.mark.parametrize(
    "url", ["", "/a", "pages.example/a", "ftp://pages.example/", "file:///etc/passwd", "http://", "http:///a", "http://[::1"]
)
def test_what_has_no_origin_is_refused(url: str) -> None:
    """If failing: a token is kept under a key that other URLs share."""
    with pytest.raises(ValueError):
        origin_of(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pay http://bob:S3CRET@h.example/x.", "pay http://h.example/x."),
        ("HTTP://bob:S3CRET@h.example", "HTTP://h.example"),
        ("https://S3CRET@h.example/x?y=a@b", "https://h.example/x?y=a@b"),
        ("http://bob:S3%40CRET@h/", "http://h/"),
        ("http://bob:S3@CRET@h/", "http://h/"),
        ("http://bob:S3/CRET@h/", "http://h/"),
        ("http://bob:S3?CRET#x@h/", "http://h/"),
        ("http://bob:S3 CRET@h/", "http://h/"),
        ("'http://bob:S3'CRET@h/'", "'http://h/'"),
        ("http:///bob:S3CRET@h/", "http:///h/"),
        ("http:\\\\bob:S3CRET@h/", "http:\\\\h/"),
        ("Invalid URL 'bob:S3CRET@h/x': no scheme", "Invalid URL 'h/x': no scheme"),
        ("http://a:S3CRET@h,http://b:S3CRET@i", "http://h,http://i"),
        ("socks5h://bob:S3CRET@h:1080", "socks5h://h:1080"),
        ("postgresql://bob:S3CRET@h/db", "postgresql://h/db"),
        ("postgresql://bob@h/db", "postgresql://bob@h/db"),
        ("http://h:80/x a@b.example", "http://h:80/x a@b.example"),
        ("write to a@b.example", "write to a@b.example"),
        ("http://[::1]:80/@x", "http://[::1]:80/@x"),
    ],
)
def test_no_password_of_a_url_is_in_a_text(text: str, shown: str) -> None:
    """If failing: a password is in an error, a log or the output of a command. What is no password stays."""
    assert "CRET" not in without_userinfos(text)
    assert without_userinfos(text) == shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://pages.example/", False),
        ("http://pages.example/", True),
        ("HTTP://Pages.example", True),
        ("http://192.168.0.1/", True),
        ("http://0.0.0.0/", True),
        ("http://127.0.0.1:8080/x", False),
        ("http://127.8.9.1/", False),
        ("http://[::1]:8080/", False),
        ("http://[::ffff:127.0.0.1]/", False),
        ("http://[fe80::1%25eth0]/", True),
        ("http://localhost/", False),
        ("http://LOCALHOST.:80/", False),
        ("http://shop.localhost/", False),
        ("http://localhost.example/", True),
        ("http://127.0.0.1.example/", True),
        ("http://127.0.0.1@pages.example/", True),
        ("http://notlocalhost/", True),
        ("http://abcdefghij234567.onion/", True),
    ],
)
def test_what_leaves_this_machine_unencrypted_is_in_the_clear(url: str, expected: bool) -> None:
    """If failing: a credential that opens a page once goes where others can read it, or a local server can't be paid."""
    assert is_in_the_clear(url) is expected
