"""The ledger on disk: budgets and payments, and the SQL for them. What may be paid is decided in `payments`."""
