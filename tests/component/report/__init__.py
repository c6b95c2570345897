"""The report: its figures, the page in a real browser, the CSV file and the command."""
