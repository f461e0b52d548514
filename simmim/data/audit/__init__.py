"""What images are like: channels, values, sizes, what is broken, what is twice there."""
