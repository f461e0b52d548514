"""One module for each way that others lay out their checkpoints."""
