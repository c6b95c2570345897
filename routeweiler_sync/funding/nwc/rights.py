"""The permissions that a connection of Nostr Wallet Connect needs, as methods of NIP-47. They are the least."""

from __future__ import annotations

#: To pay: send an order, ask what became of it, and read the wallet's network. The look-up is asked in doubt only, when a payment's
#: outcome isn't known: without it such a payment stays unfinished.
PAYING = ("pay_invoice", "lookup_invoice", "get_info")
#: To show the balance. A purchase asks for it only where a session has several wallets of one network.
BALANCE = "get_balance"
#: To compare the wallet's own list of payments (``budget audit``). Shows all payments of the connection.
LIST_PAYMENTS = "list_transactions"
