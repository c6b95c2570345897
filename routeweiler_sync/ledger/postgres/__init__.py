"""A ledger in a PostgreSQL database, for programs on several machines that share one budget. Imported only for such a ledger."""
