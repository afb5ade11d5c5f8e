"""Measures of a model's scores and reconstructions."""
