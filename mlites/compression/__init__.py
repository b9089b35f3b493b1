"""Passes that make a model smaller or faster: one technique, one file."""
