"""Serving: the model repository that Triton reads, deployment into it, and the test that follows."""
