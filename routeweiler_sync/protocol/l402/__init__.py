"""The L402 scheme: challenges, credentials and macaroons. LSAT is its older name."""
