"""What an encoder is worth, and how it is used: features, probes, fine-tuning, explained detail."""
