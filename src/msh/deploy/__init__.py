"""Files that networks and subnetworks travel in."""

from msh.deploy.files import load_network, read_network, save_network, save_subnetwork

__all__ = ["load_network", "read_network", "save_network", "save_subnetwork"]
