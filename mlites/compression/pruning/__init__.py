"""Weights and channels that matter least are removed."""
