"""Parts of the method, in plain PyTorch."""
