"""What ``make demo`` needs and a training run on real data does not."""
