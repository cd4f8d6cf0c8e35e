"""Writes to key/value caches, and reads from them."""
