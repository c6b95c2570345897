"""Sends requests through `requests` and urllib3, and notices 402s. What a 402 means is left to `paywall`."""
