"""A run's results, folder and measures."""
