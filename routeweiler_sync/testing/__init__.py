"""A testing kit for programs that pay: a fake lnd with real gRPC, TLS and macaroon. Needs the extra ``testing``."""

from __future__ import annotations

from .fake_lnd import FakeInvoice, FakeLnd, FakePayment

__all__ = ["FakeInvoice", "FakeLnd", "FakePayment"]
