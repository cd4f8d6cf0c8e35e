"""Compute with communication: dispatch and combine of an expert-parallel layer."""
