"""The wallet lnd, reached over gRPC."""
