"""Eight bits for each number in place of thirty-two."""
