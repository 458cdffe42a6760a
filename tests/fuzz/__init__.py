"""Hostile files: every file that the program reads, damaged in many ways; `make fuzz`."""
