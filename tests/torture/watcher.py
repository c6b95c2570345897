"""Sees how far a round's purchases are, so that a fault can be aimed. Knows the ledger's file and lnd's list, not the library."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import grpc

from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from tests.regtest.node import Node

#: What a fault is aimed at may never come; then it strikes anyway.
AIM_S = 1.0
LOOK_EVERY_S = 0.001


class Watcher:
    """Sees how far a round's purchases are: in the ledger's file, and in lnd's list."""

    def __init__(self, ledger: Path, node: Node, known: set[str]) -> None:
        self._ledger, self._known = ledger, known
        channel = grpc.secure_channel(node.grpc_address, grpc.ssl_channel_credentials(node.tls_cert_path.read_bytes()))
        self._channel = channel
        self._metadata = (("macaroon", node.admin_macaroon_path.read_bytes().hex()),)
        self._list = channel.unary_unary(
            "/lnrpc.Lightning/ListPayments",
            request_serializer=pb.ListPaymentsRequest.SerializeToString,
            response_deserializer=pb.ListPaymentsResponse.FromString,
        )
        with suppress(grpc.RpcError):
            self._statuses()  # connects now

    def wait(self, aim: str) -> bool:
        """Until the aim is there; False where it doesn't come."""
        until = time.monotonic() + AIM_S
        while time.monotonic() < until:
            with suppress(grpc.RpcError, sqlite3.Error):
                if aim in self._seen(aim):
                    return True
            time.sleep(LOOK_EVERY_S)
        return False

    def close(self) -> None:
        self._channel.close()

    def _seen(self, aim: str) -> set[str]:
        if aim in ("opened", "settled"):
            with closing(sqlite3.connect(f"file:{self._ledger}?mode=ro", uri=True, timeout=0.05)) as conn:
                rows = conn.execute("SELECT payment_hash, state FROM payments ORDER BY created_at_ms DESC LIMIT 8").fetchall()
            return {"opened" if state == "open" else state for h, state in rows if h not in self._known}
        return {"in flight" if s == pb.Payment.IN_FLIGHT else "paid" if s == pb.Payment.SUCCEEDED else "" for s in self._statuses()}

    def _statuses(self) -> list[int]:
        request = pb.ListPaymentsRequest(include_incomplete=True, max_payments=8, reversed=True)
        reply = self._list(request, timeout=0.5, metadata=self._metadata)
        return [p.status for p in reply.payments if p.payment_hash not in self._known]
