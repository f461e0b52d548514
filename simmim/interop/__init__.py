"""Weights of others in, and exports out."""
