"""Architectures, one family a file, and the folders that models are kept in."""
