"""A wallet that is reached by Nostr Wallet Connect (NIP-47)."""
