"""Normalizations, alone and fused with what comes before or after."""
