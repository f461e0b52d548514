"""Prepared images in numbered tar files, in the format of WebDataset."""
