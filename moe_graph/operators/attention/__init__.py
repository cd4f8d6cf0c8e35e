"""Attention over whole, packed and paged sequences."""
