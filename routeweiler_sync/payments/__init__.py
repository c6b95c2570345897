"""Buying one token: ledger and wallet, no HTTP."""
