"""Which patches are hidden from the encoder: samplers score them."""
