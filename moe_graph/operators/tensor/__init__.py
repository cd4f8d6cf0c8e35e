"""Casts, formats and status: what moves or describes a tensor and computes nothing."""
