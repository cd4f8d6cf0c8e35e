"""Losses of training, and their gradients."""
