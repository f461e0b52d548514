"""What is learned from labels: one file per task."""
