"""Low-rank factorization: a layer becomes several cheaper ones that compute nearly the same."""
