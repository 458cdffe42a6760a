"""HTML and terminal reports."""
