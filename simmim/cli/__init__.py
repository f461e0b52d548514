"""The command line: parse to a config, check what can be told without torch, call the API."""
