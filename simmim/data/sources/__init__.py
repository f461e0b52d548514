"""Where images come from: each module lists one kind of source and reads images out of it."""
