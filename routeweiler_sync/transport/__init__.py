"""How requests and urllib3 send a request, and where a 402 is noticed. What a 402 means is left to `paywall`."""
