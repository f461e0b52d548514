"""One file for each image format: from bytes to pixels."""
