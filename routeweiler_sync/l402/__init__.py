"""The L402 protocol, pure: bytes and text in, frozen values out. No I/O, no clock, no money.

    challenge.py    what a 402 offers: ``WWW-Authenticate`` → `Challenge`
    invoice.py      what it costs: BOLT-11 text → `Invoice`
    macaroon.py     what the token says of itself → `Macaroon`
    credential.py   what goes back: ``Authorization``, and the origin and scope that a token belongs to

Whether to pay (expiry, network, policy, budget, a token that belongs to another invoice) is decided by those who call. bolt11 and
pymacaroons are imported when the first challenge is read, not before; nothing is re-exported here, for the same reason.
"""
