"""Fewer bits for each number: 16, 8 or 4 in place of 32."""
