"""One file per command, from its config to its results; the command line only parses."""
