"""Images that tables list or hold."""
