"""The generated stubs are what the proto file says, whoever edits either."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.funding.lnd import stubs
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb

ROOT = Path(__file__).parents[4]


def _setup_module() -> Any:
    spec = importlib.util.spec_from_file_location("routeweiler_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stubs_were_made_from_the_proto_file_that_is_there() -> None:
    """A field added to protos/ but not built would silently be dropped from every message."""
    setup = _setup_module()
    assert setup.sha256(setup.PROTO) == stubs.PROTO_SHA256, "protos/ has changed: python setup.py build_protos"


def test_stubs_are_as_they_were_generated() -> None:
    """A stub edited by hand would work until the next build and then lose the edit."""
    setup = _setup_module()
    made = [ROOT / "routeweiler_sync" / "funding" / "lnd" / "stubs" / f"routeweiler_lnd_pb2{ending}" for ending in (".py", ".pyi")]
    assert setup.sha256(*made) == stubs.STUBS_SHA256, "stubs were edited: python setup.py build_protos"
    assert setup.GRPCIO_TOOLS == stubs.GRPCIO_TOOLS


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools isn't installed; the digests are compared")
def test_building_the_stubs_anew_gives_the_same_files(tmp_path: Path) -> None:
    """The digests can't tell whether protoc still makes of protos/ what is committed."""
    if metadata.version("grpcio-tools") != stubs.GRPCIO_TOOLS:
        pytest.skip("another grpcio-tools than the pinned one is installed; the digests are compared")
    subprocess.run([sys.executable, "setup.py", "-q", "build_protos", f"--into={tmp_path}"], cwd=ROOT, check=True)
    for made in tmp_path.iterdir():
        assert made.read_text() == (ROOT / "routeweiler_sync" / "funding" / "lnd" / "stubs" / made.name).read_text(), made.name


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is not None, reason="grpcio-tools is installed")
def test_building_without_the_pinned_protoc_says_which_one_is_needed(tmp_path: Path) -> None:
    """A newer protoc would make stubs that don't import beside protobuf 4.25, and nobody would know why."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_protos", f"--into={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"grpcio-tools=={stubs.GRPCIO_TOOLS}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            pb.SendPaymentRequest,
            {"payment_request": 5, "timeout_seconds": 6, "fee_limit_sat": 7, "fee_limit_msat": 13, "allow_self_payment": 15},
        ),
        (pb.TrackPaymentRequest, {"payment_hash": 1, "no_inflight_updates": 2}),
        (
            pb.Payment,
            {
                "payment_hash": 1,
                "payment_preimage": 6,
                "value_msat": 8,
                "status": 10,
                "fee_msat": 12,
                "payment_index": 15,
                "failure_reason": 16,
            },
        ),
        (pb.GetInfoResponse, {"identity_pubkey": 1, "block_height": 6, "synced_to_chain": 9, "version": 14, "chains": 16}),
        (pb.ListPaymentsRequest, {"include_incomplete": 1, "index_offset": 2, "max_payments": 3, "reversed": 4}),
        (pb.Invoice, {"memo": 1, "r_preimage": 3, "r_hash": 4, "value": 5, "payment_request": 9, "expiry": 11, "value_msat": 23}),
    ],
)
def test_field_numbers_are_lnds(message: type, fields: dict[str, int]) -> None:
    """A wrong number puts the fee limit into another field: lnd would pay with no limit that we meant."""
    numbers = {field.name: field.number for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert {name: numbers[name] for name in fields} == fields


def test_stubs_live_beside_another_package_with_lnds_own_file_name() -> None:
    """With lnd's file or package name the import of any other lnd client in the process would fail."""
    assert pb.DESCRIPTOR.name == "routeweiler_lnd.proto"
    assert pb.DESCRIPTOR.package == "routeweiler_sync.lnd"
