"""What other libraries open: each format is written, loaded back by them, and compared."""
