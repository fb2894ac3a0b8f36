"""Flow matching guided by a code."""
