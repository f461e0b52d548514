"""What is trained: one file per task."""
