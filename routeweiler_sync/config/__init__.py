"""Who pays for a session: its settings, and what the environment says."""
