"""The names of rails: the ways to pay that a server can offer, as the trace, budgets and policies write them, each written once."""

from __future__ import annotations

#: A Lightning payment for an L402 (or LSAT) challenge.
L402 = "l402"
#: A Lightning payment for a charge of the ``Payment`` scheme (MPP).
MPP_LIGHTNING = "mpp-lightning"

#: The rails that a budget allows unless it names others.
DEFAULT_RAILS = (L402, MPP_LIGHTNING)
