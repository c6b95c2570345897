"""What a session pays with: its settings, and what the environment says. Buying is left to `payments`."""
