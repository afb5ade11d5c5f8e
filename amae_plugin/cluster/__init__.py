"""Training on a SLURM cluster: where a process stands in its job, signals, requeueing, locks, and submitting."""
