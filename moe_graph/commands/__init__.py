"""Commands that have no room of their own: `run` and `status`."""
