"""The L402 scheme (LSAT is its older name)."""
