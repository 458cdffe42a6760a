"""The Multiple Subnetwork Hypothesis: many tasks in one network, each in its own subnetwork, nothing forgotten."""

__version__ = "0.1.0"
