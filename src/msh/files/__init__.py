"""State files, and atomic, verified writes."""
