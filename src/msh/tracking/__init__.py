"""Loggers, and how they resume."""
