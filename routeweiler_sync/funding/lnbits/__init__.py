"""LNbits, reached over HTTP with the admin key of one of its wallets."""
