"""What travels between the parts: batch, mask, features, patches, random numbers by counter."""
