"""What a model's scores are worth, computed on a whole split at once."""
