"""Further losses on the same features."""
