"""What may be spent: budget envelopes, and the price of bitcoin for those in a fiat currency. The ledger is in `ledger`."""
