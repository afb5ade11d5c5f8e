"""How fast a recipe trains on this machine: one optimizer step, and the data path, each measured by itself."""
