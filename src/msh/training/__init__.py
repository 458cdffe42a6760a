"""Training: the curriculum, the LightningModule, and the callbacks that prune, freeze and check."""
