"""Make a network small and fast enough for the hardware people have, prove it there, and serve it safely."""

__version__ = "0.1.0"
