"""The pictures of the report: SVG alone, numbers in, one kind a file."""
