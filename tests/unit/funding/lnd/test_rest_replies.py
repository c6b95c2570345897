"""What lnd's REST gateway sends is read as gRPC would have said it, and what isn't lnd's as nothing at all."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from routeweiler_sync.funding.lnd.replies import BAD_REQUEST, WRONG_PATH, Rpc, read_error
from routeweiler_sync.funding.lnd.rest_replies import RestReply, read_reply
from routeweiler_sync.funding.replies import WalletReply

PAGE = b"<html><head><title>502 Bad Gateway</title></head></html>"


def read(content: Any, status: int = 200, *, is_stream: bool = True) -> RestReply:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_reply(status, "application/json", data, is_stream=is_stream)


def error(code: object, message: object = "text", status: int = 500, *, wrapped: bool = True) -> RestReply:
    content = {"code": code, "message": message, "details": []}
    return read({"error": content} if wrapped else content, status)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_number_has_grpcs_name(code: grpc.StatusCode) -> None:
    """The table of replies is written in these names."""
    number = code.value[0]
    assert error(number, "payment isn't initiated").code == code.name
    assert error(number, "payment isn't initiated").text == "payment isn't initiated"


def test_a_message_of_a_stream_is_in_its_wrapper_and_a_single_answer_in_none() -> None:
    assert read({"result": {"status": "SUCCEEDED"}}).message == {"status": "SUCCEEDED"}
    assert read({"status": "SUCCEEDED"}).message is None
    assert read({"state": "LOCKED"}, is_stream=False).message == {"state": "LOCKED"}


@pytest.mark.parametrize(
    ("number", "message", "status", "wrapped", "send", "track"),
    [
        (6, "invoice is already paid", 409, True, WalletReply.EXISTS, WalletReply.UNKNOWN),
        (2, "invoice expired. Valid until 2026-01-01", 500, True, WalletReply.EXPIRED, WalletReply.UNKNOWN),
        (2, "permission denied", 500, True, WalletReply.REFUSED, WalletReply.UNKNOWN),
        (2, "permission denied", 500, False, WalletReply.REFUSED, WalletReply.UNKNOWN),
        (3, 'proto: unknown field "x"', 400, False, WalletReply.REFUSED, WalletReply.UNKNOWN),
        (3, 'proto: unknown field "x"', 400, True, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (3, 'proto: unknown field "x"', 500, False, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (5, "payment isn't initiated", 404, True, WalletReply.UNKNOWN, WalletReply.NOT_FOUND),
        (5, "payment isn't initiated", 404, False, WalletReply.UNKNOWN, WalletReply.NOT_FOUND),
        (5, "Not Found", 404, False, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (5, "Not Found", 404, True, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (5, "the payment isn't initiated yet", 404, True, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (12, "Method Not Allowed", 501, False, WalletReply.REFUSED, WalletReply.UNKNOWN),
        (13, "stream error", 500, True, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
        (14, "connection refused", 503, True, WalletReply.UNKNOWN, WalletReply.UNKNOWN),
    ],
)
def test_an_error_means_what_it_means_over_grpc(
    number: int, message: str, status: int, wrapped: bool, send: WalletReply, track: WalletReply
) -> None:
    """A wrong path has the code of an unknown hash: read as one, a payment in flight would be taken for none."""
    reply = error(number, message, status, wrapped=wrapped)
    rpcs: tuple[tuple[Rpc, WalletReply], ...] = (("send", send), ("track", track))
    for rpc, expected in rpcs:
        assert read_error(rpc, reply.code, reply.text).reply is expected, rpc


def test_the_gateways_own_errors_have_names_of_their_own() -> None:
    assert error(3, "EOF", 400, wrapped=False).code == BAD_REQUEST
    assert error(5, "Not Found", 404, wrapped=False).code == WRONG_PATH


@pytest.mark.parametrize("status", [200, 301, 400, 403, 404, 409, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "content",
    [
        PAGE, b"", b"null", b"[]", b'"payment isn\'t initiated"', b"{", b"[" * 100_000, b"\xff\xfe", {}, {"error": "Not Found"},
        {"code": "5", "message": "payment isn't initiated"}, {"code": True, "message": "x"}, {"code": 5},
        {"code": 99, "message": ""},
        {"code": 0, "message": ""}, {"code": -5, "message": ""}, {"code": 5.0, "message": "payment isn't initiated"},
        {"message": "payment isn't initiated"}, {"error": {"code": 5}}, {"error": {"message": "invoice is already paid"}},
        {"detail": "Not Found"}, {"result": "x"}, {"result": None},
    ],
)  # fmt: skip
def test_what_isn_t_lnds_proves_nothing_whatever_its_status(content: Any, status: int) -> None:
    """A proxy in front of lnd answers with pages and JSON of its own while lnd pays on."""
    reply = read(content, status)
    assert (reply.message, reply.code) == (None, f"HTTP {status}")
    rpcs: tuple[Rpc, ...] = ("send", "track")
    for rpc in rpcs:
        assert read_error(rpc, reply.code, reply.text).reply is WalletReply.UNKNOWN
    assert "initiated" not in reply.text


@pytest.mark.parametrize("status", [201, 204, 302, 404, 409, 500, 502])
def test_a_message_under_an_error_s_status_isn_t_believed(status: int) -> None:
    assert read({"result": {"status": "FAILED"}}, status).message is None
    assert read({"state": "SERVER_ACTIVE"}, status, is_stream=False).message is None
