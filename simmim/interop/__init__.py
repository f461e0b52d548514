"""Encoders and runs on the disk: what we write, and reading it back."""
