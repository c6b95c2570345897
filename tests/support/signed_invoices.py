"""Invoices by the thousand, signed and doctored, and what the library bolt11 reads in them.

The same random generator gives the same invoices.
"""

from __future__ import annotations

import random
from decimal import localcontext

import bolt11
from bech32 import CHARSET
from coincurve import PrivateKey

from routeweiler_sync._core.money import EXACT
from routeweiler_sync.protocol.invoice import MAX_EXPIRY_S, Invoice
from tests.support.challenge_builders import Words, invoice, number, remade, taken_apart, words

_NETWORKS = {"bc": "bitcoin", "tb": "bitcoin-testnet", "tbs": "bitcoin-signet", "bcrt": "bitcoin-regtest"}
_KEYS = [PrivateKey(bytes([n]) * 32) for n in range(1, 9)]
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def signed_invoice(chance: random.Random) -> str:
    """An invoice that a wallet could make: any network, amount and description, and fields of every kind in any order."""
    key = chance.choice(_KEYS)
    fields = [("p", words(chance.randbytes(32))), ("s", words(chance.randbytes(32)))]
    if chance.random() < 0.85:
        text = "".join(chance.choices("abc éß→🗲 ", k=chance.choice((0, 1, 3, 7, 8, 40, 200))))
        fields.append(("d", words(text.encode())))
    else:
        fields.append(("h", words(chance.randbytes(32))))
    optional = {
        "x": number(chance.choice((0, 60, 3600, 86400, 31_536_000, MAX_EXPIRY_S)), chance.choice((7, 8, 9))),
        "c": number(chance.randrange(1024), chance.choice((2, 3))),
        "9": _loose_words(chance, 1, 25),
        "m": words(chance.randbytes(chance.randrange(20))),
        "f": [chance.randrange(32), *words(chance.randbytes(20))],
        "n": words(key.public_key.format()),
    }
    fields += [(name, value) for name, value in optional.items() if chance.random() < 0.4]
    fields += [("r", words(chance.randbytes(51 * chance.randrange(1, 4)))) for _ in range(chance.choice((0, 0, 0, 1, 2)))]
    fields += [("f", [17, *words(chance.randbytes(20))]) for _ in range(chance.choice((0, 0, 0, 1)))]
    # What a reader must skip: unknown names, and lengths that aren't the field's.
    fields += [(chance.choice("qyz2vjlu"), _loose_words(chance, 0, 30)) for _ in range(chance.choice((0, 0, 0, 1, 2)))]
    fields += [(chance.choice("pshn"), _loose_words(chance, 50, 52)[:51]) for _ in range(chance.choice((0, 0, 0, 0, 1)))]
    chance.shuffle(fields)
    return invoice(_head(chance), fields, created_at=chance.choice((0, 1, 1_700_000_000, 2**35 - 1)), key=key)


def doctored_invoice(chance: random.Random) -> str:
    """An invoice that is changed: in its text, its words under a right checksum, or its fields under a right signature."""
    kind = chance.randrange(4)
    if kind == 0:
        names = chance.choices("psdhnxcm9frqyz5", k=chance.randrange(7))
        sure = [("p", words(chance.randbytes(32))), ("s", words(chance.randbytes(32))), ("d", words(b"a page"))]
        fields = sure[: chance.choice((0, 2, 3, 3, 3))]
        for name in names:
            fields.append(
                (name, _loose_words(chance, 0, chance.choice((1, 3, 14, 60))) if chance.random() < 0.6 else _whole(chance, name))
            )
        chance.shuffle(fields)
        return invoice(_head(chance), fields, loose=_loose_words(chance, 0, 3) if chance.random() < 0.1 else ())
    text = signed_invoice(chance)
    if kind == 1:
        at = chance.randrange(len(text))
        other = chance.choice(CHARSET + "1bioBQ\u212a ")
        return text[:at] + chance.choice((other, "", other + text[at])) + text[at + 1 :]
    head, data = taken_apart(text)
    if kind == 2:
        for _ in range(chance.choice((1, 1, 2, 5))):
            data[chance.randrange(len(data))] = chance.randrange(32)
        if chance.random() < 0.3:
            cut = chance.randrange(len(data))
            data = data[:cut] + (data[cut + chance.randrange(1, 4) :] if chance.random() < 0.7 else [])
        return remade(head, data)
    return remade(_head(chance) if chance.random() < 0.3 else head, data[:-104] + _other_signature(chance, data[-104:]))


def library_reads(text: str) -> Invoice | None:
    """What `decode_invoice` must return for ``text``, read by the library alone; None if it must refuse it.

    ``text`` has a human-readable part that `decode_invoice` accepts.
    """
    try:
        with localcontext(EXACT):
            read = bolt11.decode(text, ignore_exceptions=True)
        names = _names(text)
        if any(names.count(name) > 1 for name in "psdhnxcm9") or {"d", "h"} <= set(names):
            return None
        if "5" in names and ("r" in names or "p" not in names or not {"d", "h"} & set(names)):
            return None
        if "5" not in names:
            read.validate()
    except Exception:  # of the library, of bitstring, of coincurve: it is no invoice
        return None
    if not read.amount_msat or not 0 <= read.expiry <= MAX_EXPIRY_S or read.payee is None:
        return None
    return Invoice(
        bolt11=text.lower(),
        payment_hash=bytes.fromhex(read.payment_hash),
        amount_msat=read.amount_msat,
        network=_NETWORKS[read.currency],
        created_at=read.date,
        expires_at=read.date + read.expiry,
        description=read.description or "",
        payee=read.payee,
    )


def _head(chance: random.Random) -> str:
    amount = chance.choice(
        (
            f"{chance.randrange(1, 10**8)}0p",
            f"{chance.randrange(1, 10**11)}n",
            f"{chance.randrange(1, 10**9)}u",
            f"{chance.randrange(1, 10**6)}m",
            f"{chance.randrange(1, 1000)}",
        )
    )
    return f"ln{chance.choice(list(_NETWORKS))}{amount}"


def _loose_words(chance: random.Random, least: int, most: int) -> Words:
    return chance.choices(range(32), k=chance.randint(least, most))


def _whole(chance: random.Random, name: str) -> Words:
    count = {"p": 52, "s": 52, "h": 52, "n": 53}.get(name, chance.randrange(40))
    if name == "n" and chance.random() < 0.7:
        return words(chance.choice(_KEYS).public_key.format())
    return chance.choices(range(32), k=count)


def _other_signature(chance: random.Random, signature: Words) -> Words:
    """Another signature in the place of ``signature``: its high-S twin, with another recovery flag, of zeros or of noise."""
    number_ = 0
    for word in signature:
        number_ = number_ << 5 | word
    data = bytearray(number_.to_bytes(65, "big"))
    kind = chance.randrange(4)
    if kind == 0:
        data[32:64] = (_ORDER - int.from_bytes(data[32:64], "big")).to_bytes(32, "big")
        data[64] ^= chance.choice((0, 1))
    elif kind == 1:
        data[64] = chance.choice((0, 1, 2, 3, 4, 255))
    elif kind == 2:
        data[:64] = chance.choice((bytes(64), bytes(32) + bytes(data[32:64]), b"\xff" * 64))
    else:
        data[chance.randrange(65)] = chance.randrange(256)
    return words(bytes(data))


def _names(text: str) -> list[str]:
    """The names of the fields in ``text``, an invoice that the library has read, without those that a reader must skip."""
    data, names, at = text.lower().rpartition("1")[2][7:-110], [], 0
    while at < len(data):
        length = CHARSET.index(data[at + 1]) * 32 + CHARSET.index(data[at + 2])
        if length == {"p": 52, "s": 52, "h": 52, "n": 53}.get(data[at], length) and (length or data[at] != "5"):
            names.append(data[at])
        at += 3 + length
    return names
