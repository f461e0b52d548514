"""From listed images to batches: order, augmentation, cache, processes."""
