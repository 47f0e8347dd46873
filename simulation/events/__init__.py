"""What can happen in the simulated cluster, one kind per file."""
