"""Files that networks and subnetworks travel in."""
