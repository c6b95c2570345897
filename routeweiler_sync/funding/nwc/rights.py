"""The permissions that a connection of Nostr Wallet Connect needs, as methods of NIP-47. They are the least."""

from __future__ import annotations

#: Without these the wallet isn't used: an order whose answer was lost can be found again by a look-up alone.
NEEDED = ("pay_invoice", "lookup_invoice")
#: To pay, and to read the wallet's network.
PAYING = (*NEEDED, "get_info")
#: To show the balance. A purchase asks for it only where a session has several wallets of one network.
BALANCE = "get_balance"
#: To compare the wallet's own list of payments (``budget audit``). Shows all payments of the connection.
LIST_PAYMENTS = "list_transactions"
