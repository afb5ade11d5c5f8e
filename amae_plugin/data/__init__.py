"""From a manifest's row to a batch of spectrograms."""
