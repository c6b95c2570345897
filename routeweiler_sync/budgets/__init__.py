"""What may be spent: envelopes, the ledger that holds them and every payment, and the price of bitcoin."""
