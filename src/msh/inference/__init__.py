"""Rebuild and export trained networks."""
