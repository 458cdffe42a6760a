"""Fuzz every file that the program reads: `make fuzz`."""
