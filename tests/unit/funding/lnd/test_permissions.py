"""What a macaroon of lnd's says about its own rights."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from pymacaroons import MACAROON_V1, MACAROON_V2, Macaroon
from pymacaroons.serializers import BinarySerializer

from routeweiler_sync.funding.lnd import rights
from routeweiler_sync.funding.lnd.permissions import read_permissions
from routeweiler_sync.funding.lnd.stubs import routeweiler_lnd_pb2 as pb

#: In the form of the admin.macaroon that lnd 0.21 makes; nonce and signature are made up.
ADMIN = bytes.fromhex(
    "0201036c6e6402f801030a10"
    + "07" * 16
    + "1201301a160a0761646472657373120472656164120577726974651a130a04696e666f12047265616412057772"
    "6974651a170a08696e766f69636573120472656164120577726974651a210a086d616361726f6f6e120867656e6572617465120472656164120577726974651a"
    "160a076d657373616765120472656164120577726974651a170a086f6666636861696e120472656164120577726974651a160a076f6e636861696e1204726561"
    "64120577726974651a140a057065657273120472656164120577726974651a180a067369676e6572120867656e657261746512047265616400000620"
    + "00"
    * 32
)


def macaroon(*operations: tuple[str, str], caveats: tuple[str, ...] = (), identifier: bytes | None = None) -> bytes:
    ops = [pb.MacaroonOp(entity=entity, actions=[action]) for entity, action in operations]
    made = Macaroon(
        location="lnd",
        identifier=b"\x03" + pb.MacaroonId(ops=ops).SerializeToString() if identifier is None else identifier,
        key="key",
        version=MACAROON_V2,
    )
    for caveat in caveats:
        made.add_first_party_caveat(caveat)
    data: bytes = BinarySerializer().serialize_raw(made)
    return data


def test_lnds_own_admin_macaroon_is_read() -> None:
    """Whoever pays with it gives a program the whole node."""
    read = read_permissions(ADMIN)
    assert read is not None
    assert ("onchain", "write") in read.operations
    assert read.powers == (
        "make macaroons with any right",
        "spend the coins of the node's wallet",
        "sign with the node's keys",
        "change its channels and delete its payments",
    )


@pytest.mark.parametrize(
    ("operations", "powers"),
    [
        ([("uri", path) for path in (*rights.PAYING, rights.BALANCE, rights.LIST_PAYMENTS)], ()),
        ([("info", "read"), ("offchain", "read"), ("onchain", "read")], ()),
        ([("offchain", "write")], ("change its channels and delete its payments",)),
        ([("macaroon", "generate")], ("make macaroons with any right",)),
        ([("uri", "/lnrpc.Lightning/BakeMacaroon")], ("make macaroons with any right",)),
        ([("uri", "/lnrpc.Lightning/SendCoins")], ("spend the coins of the node's wallet",)),
        ([("uri", "/walletrpc.WalletKit/SendOutputs")], ("spend the coins of the node's wallet",)),
    ],
)
def test_what_could_do_harm_is_told_from_what_can_not(operations: list[tuple[str, str]], powers: tuple[str, ...]) -> None:
    """A warning about a right that can do no harm would teach users to overlook warnings."""
    read = read_permissions(macaroon(*operations))
    assert read is not None
    assert read.powers == powers


def test_the_end_is_that_of_the_earliest_caveat() -> None:
    """A macaroon that ends next week would end unawares."""
    caveats = ("time-before 2030-01-02T00:00:00Z", "ipaddr 10.0.0.1", "time-before 2029-03-04T05:06:07.123456789+01:00")
    read = read_permissions(macaroon(("info", "read"), caveats=caveats))
    assert read is not None
    assert read.until == datetime(2029, 3, 4, 4, 6, 7, tzinfo=timezone.utc)
    assert read.caveats == ("time-before", "ipaddr", "time-before")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        ADMIN[:40],
        b"not a macaroon",
        macaroon(identifier=b"\x02abc"),
        macaroon(identifier=b"\x03\xff\xff\xff"),
        macaroon(),
        BinarySerializer().serialize_raw(Macaroon(location="l", identifier="i", key="k", version=MACAROON_V1)),
    ],
)
def test_what_can_not_be_read_is_not_judged(data: bytes) -> None:
    """Other software issues macaroons too; a guess about their rights would be wrong."""
    assert read_permissions(data) is None
