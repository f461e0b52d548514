"""Images that are not on this machine."""
