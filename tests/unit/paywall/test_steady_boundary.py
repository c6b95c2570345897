"""A form's boundary made from its content: the same in each run, and in no part of the form."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from hypothesis import given, strategies as st

from routeweiler_sync.paywall.replay import resource_digest, with_steady_boundary

URL = "https://api.example/upload"


def _form(content: bytes, **headers: str | bytes) -> requests.PreparedRequest:
    return requests.Request("POST", URL, files={"a": ("a.bin", content)}, data={"k": "v"}, headers=headers).prepare()


def _raw(body: Any, content_type: str = "multipart/form-data; boundary=sea") -> requests.PreparedRequest:
    return requests.Request("POST", URL, data=body, headers={"Content-Type": content_type}).prepare()


@given(st.binary(max_size=200))
def test_each_encoding_of_a_form_becomes_the_same_body(content: bytes) -> None:
    """If failing: a later run can't send what an earlier one has paid for."""
    one, two = _form(content), _form(content)
    assert one.body != two.body
    first, second = with_steady_boundary(one), with_steady_boundary(two)
    assert first is not None
    assert second is not None
    assert (first.body, first.headers) == (second.body, second.headers)
    assert isinstance(first.body, bytes)
    assert first.headers["Content-Length"] == str(len(first.body))
    assert resource_digest(first) == resource_digest(one)
    boundary = first.headers["Content-Type"].partition("boundary=")[2]
    assert len(boundary) <= 70
    assert (
        first.body.split(f"--{boundary}".encode())[1:-1] == one.body.split(f"--{one.headers['Content-Type'][30:]}".encode())[1:-1]
    )
    assert with_steady_boundary(first) is None, "it has one already"
    assert one.headers["Content-Type"] != first.headers["Content-Type"], "the caller's own request stays as it was"


def test_the_boundary_is_in_no_part() -> None:
    """If failing: a server finds a part where there is none, which someone may have put there."""
    other = with_steady_boundary(_form(b"x"))
    assert other is not None
    inner = other.body
    made = with_steady_boundary(_form(inner if isinstance(inner, bytes) else b""))
    assert made is not None
    assert isinstance(made.body, bytes)
    assert made.body.count(made.headers["Content-Type"].partition("boundary=")[2].encode()) == 3


@pytest.mark.parametrize("quoted", ['multipart/mixed; boundary="a b"; x=1', 'Multipart/Form-Data; x=1; BOUNDARY="sea"; y=2'])
def test_the_rest_of_the_content_type_stays(quoted: str) -> None:
    """If failing: the server reads the form as something else."""
    made = with_steady_boundary(_raw(b"--sea\r\n\r\none\r\n--sea--\r\n", quoted))
    if "sea" not in quoted:
        assert made is None
        return
    assert made is not None
    before, _, after = quoted.partition("sea")
    boundary = made.headers["Content-Type"][len(before) : -len(after)]
    assert made.headers["Content-Type"] == before + boundary + after
    assert made.body == f"--{boundary}\r\n\r\none\r\n--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    "request_",
    [
        requests.Request("GET", URL).prepare(),
        requests.Request("POST", URL, data=b"x").prepare(),
        requests.Request("POST", URL, json={"a": 1}).prepare(),
        _raw(b"--sea\n\none\n--sea--\n"),
        _raw(b"--sea\r\n\r\n--seas\r\n--sea--\r\n"),
        _raw(b"--sea--"),
        _raw(b"no form"),
        _raw("--sea\r\n\r\n\u00e9\r\n--sea--\r\n"),
        _raw(iter([b"--sea\r\n\r\n\r\n--sea--\r\n"])),
        _form(b"x", **{"Content-MD5": "1"}),
        _form(b"x", Digest="1"),
        _form(b"x", **{"X-Amz-Content-Sha256": "1"}),
        _form(b"x", **{"x-hub-signature-256": b"1"}),
        _form(b"x", Authorization="AWS4-HMAC-SHA256 Credential=1"),
        _form(b"x", Authorization=b"OAuth oauth_signature=1"),
    ],
)
def test_what_cant_be_encoded_again_with_certainty_stays(request_: requests.PreparedRequest) -> None:
    """If failing: a body that isn't the caller's goes out, or one that its signature doesn't fit."""
    assert with_steady_boundary(request_) is None
