"""Measures what msh costs, each time against the dense network in the same run: `python -m benchmarks.run`."""
