"""The public names of the L402 protocol: reading a challenge, making a credential. No I/O, and no money moves.

The code is in `routeweiler_sync.protocol`: what only L402 has in `protocol.l402`, what all schemes share in `protocol.challenge`
and `protocol.invoice`.
"""

from __future__ import annotations

from ..protocol.challenge import Challenge as Challenge, scope_of as scope_of
from ..protocol.invoice import Invoice as Invoice, decode_invoice as decode_invoice
from ..protocol.l402.challenge import parse_challenge as parse_challenge
from ..protocol.l402.credential import authorization as authorization, is_credential as is_credential, redact as redact
from ..protocol.l402.macaroon import Macaroon as Macaroon, parse_macaroon as parse_macaroon

__all__ = [
    "Challenge",
    "Invoice",
    "Macaroon",
    "authorization",
    "decode_invoice",
    "is_credential",
    "parse_challenge",
    "parse_macaroon",
    "redact",
    "scope_of",
]
