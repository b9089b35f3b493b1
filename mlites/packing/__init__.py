"""Model files made small for download, and restored bit for bit."""
