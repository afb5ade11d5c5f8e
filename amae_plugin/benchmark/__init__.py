"""Speed of a recipe on this machine: an optimizer step, and the data path, each measured separately."""
