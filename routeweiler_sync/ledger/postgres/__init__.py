"""The ledger in a PostgreSQL database, for programs that share one budget."""
