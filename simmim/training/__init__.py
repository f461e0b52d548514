"""One loop for every task: step, optimizer, schedule, processes, automatic choices."""
