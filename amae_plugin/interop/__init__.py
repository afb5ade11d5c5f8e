"""Weights in and out: published checkpoints to this plugin's; this plugin's to other libraries and to benchmarks."""
