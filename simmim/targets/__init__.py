"""What is predicted for a masked patch, and how an error is measured."""
