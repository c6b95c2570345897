"""A price server for aperture's `dynamicprice`: aperture asks it over gRPC what a path costs.

The protocol is aperture's `pricesrpc/prices.proto`, one method with two small messages, so they are read and written by hand here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD = "/pricesrpc.Prices/GetPrice"
PATH_TAG = 0x0A  # field 1, a string
PRICE_TAG = 0x08  # field 1, an int64
WORKERS = 4


class Prices:
    """Serves on a free port of 127.0.0.1 until `close`. `sat` tells the price of a path, and may be changed; `asked` grows."""

    def __init__(self, sat: Callable[[str], int]) -> None:
        self.sat = sat
        self.asked: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(WORKERS))
        handler = grpc.unary_unary_rpc_method_handler(self._get_price)
        service, name = METHOD[1:].split("/")
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(grace=None).wait()

    def _get_price(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        path = _path(request)
        self.asked.append(path)
        return bytes([PRICE_TAG]) + _varint(self.sat(path))


def _path(request: bytes) -> str:
    assert request[0] == PATH_TAG
    length, at = 0, 1
    for shift in range(0, 64, 7):
        length |= (request[at] & 0x7F) << shift
        at += 1
        if not request[at - 1] & 0x80:
            break
    return request[at : at + length].decode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
