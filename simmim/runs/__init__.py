"""The run folder, and the formats of all that is in it."""
