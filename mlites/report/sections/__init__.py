"""One part of the page a file: what it shows, taken from summary and details; the template beside it says how."""
