"""One call and the 402s it meets: HTTP messages in, HTTP messages out. Money is left to `payments`."""
