"""Send requests through `requests` and urllib3, and notice 402s. What a 402 means is left to `paywall`."""
