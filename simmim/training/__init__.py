"""One loop for pretraining and fine-tuning: step, optimizer, processes, checkpoints, metrics."""
