"""What an encoder is worth without training it: features, probes, explained detail."""
