"""A report of what was paid: read from ledgers and traces, as figures, as an HTML page and as CSV."""
