"""The ``Payment`` scheme (MPP, draft-httpauth-payment) over Lightning: charges, their credentials and receipts."""
