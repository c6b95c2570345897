"""Tools for agents: what a language model may call to fetch pages, and to pay for them within limits that it can't change."""
