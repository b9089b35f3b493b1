"""The run told to machines (summary.json) and to people (report.html)."""
