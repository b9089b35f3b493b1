"""The embedded stack: a real SeaweedFS and a real tritonserver on loopback, for runs without a cluster."""

from mlites.stack.control import Server, StackFailed, down, environment, status, up

__all__ = ["Server", "StackFailed", "down", "environment", "status", "up"]
