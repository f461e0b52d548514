"""From files to batches: find, decode, survey, augment, order, load, and what could not be read."""
