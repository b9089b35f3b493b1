"""Labelled examples: read from a source, split without leaks, validated, and kept as a dataset folder."""
