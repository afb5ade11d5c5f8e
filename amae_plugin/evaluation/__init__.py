"""A trained model on a whole split, and the results of several runs."""
