"""Training on a SLURM cluster: a process's place in its job, signals, locks, and submitting."""
