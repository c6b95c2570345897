"""The headers that credentials go into, each written once. Wherever one is stripped, hidden or compared, the other is too."""

from __future__ import annotations

from collections.abc import Container

#: The header of HTTP's own. `requests` strips it on redirects to other hosts.
AUTHORIZATION = "Authorization"
#: The header that a challenge of the Payment scheme may ask for, so that `Authorization` stays the program's.
PAYMENT_AUTHORIZATION = "Payment-Authorization"

CREDENTIAL_HEADERS = (AUTHORIZATION, PAYMENT_AUTHORIZATION)


def authorizes(headers: Container[str] | None) -> bool:
    """Return whether ``headers``, which are compared in any case, hold a credential of some kind."""
    return headers is not None and (AUTHORIZATION in headers or PAYMENT_AUTHORIZATION in headers)
