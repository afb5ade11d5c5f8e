"""Manifests from the layouts in which corpora are published."""
