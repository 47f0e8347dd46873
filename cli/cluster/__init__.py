"""A cluster of processes on this machine: what runs, and who watches it."""
